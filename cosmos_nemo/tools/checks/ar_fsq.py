"""Finite scalar quantisation: bounds, codes and ids of given values, codes of ids and ids of codes."""

from collections.abc import Callable

import torch

from cosmos_nemo.models.discrete_tokenizer import fsq
from cosmos_nemo.tools.checks import Case, Outputs, Tensors


def check(case: Case, tensors: Tensors, *, device: torch.device) -> Outputs:
    """Each output of the file that is known. Computed in float32 whatever the dtype, as the tokenizer does.

    Codes of ids, and ids of codes, start from those in the file, so that no error is counted twice.
    """
    levels = tuple(case["levels"])
    fsq.check_levels(levels)

    def given(name: str) -> torch.Tensor:
        return tensors[name].to(device)

    makers: dict[str, Callable[[], torch.Tensor]] = {
        "bounded": lambda: fsq.bounded(given("inputs.z"), levels),
        "codes": lambda: fsq.nearest_codes(given("inputs.z"), levels),
        "indices": lambda: fsq.ids_of(fsq.nearest_codes(given("inputs.z"), levels), levels),
        "codes_to_indices": lambda: fsq.ids_of(given("outputs.codes"), levels),
        "indices_to_codes": lambda: fsq.codes_of(given("outputs.indices"), levels),
        "some_codes": lambda: fsq.codes_of(given("inputs.some_indices"), levels),
        "implicit_codebook_head": lambda: fsq.codes_of(
            torch.arange(len(tensors["outputs.implicit_codebook_head"]), device=device), levels
        ),
    }
    for name, make in makers.items():
        if f"outputs.{name}" in tensors:
            yield name, make()
