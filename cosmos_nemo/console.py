"""How doors and tools speak: our log, other libraries only when something is wrong."""

import logging
import sys
import warnings


def set_up_logging(*, verbose: bool) -> None:
    """Our messages (warnings only, unless `verbose`) and other libraries' errors go to stderr, bare.

    Before torch and Megatron are imported: both warn at import of what is only optional here.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cosmos_nemo").setLevel(logging.INFO if verbose else logging.WARNING)
    for noisy in ("megatron", "transformers", "diffusers", "torch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers|diffusers)\b")
