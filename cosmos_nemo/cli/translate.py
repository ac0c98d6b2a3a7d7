"""Parsed flags, under the names that the doors have in common, as Setup and requests."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.cli.flags import offloaded, path_of, whole
from cosmos_nemo.cli.invocation import Batch, Invocation
from cosmos_nemo.request import Setup, Text2WorldRequest, card_values

R = TypeVar("R", bound=Text2WorldRequest)


def setup_of(flags: argparse.Namespace, *, model: str, upsamples: bool, **own: Any) -> Setup:
    """`own`: the fields that a door has flags of its own for."""
    limit = getattr(flags, "word_limit_to_skip_upsampler", None)
    return Setup(
        model=model,
        upsamples=upsamples,
        word_limit=Setup.word_limit if limit is None else limit,
        guardrails=not flags.disable_guardrail,
        tokenizer_dir=path_of(flags.tokenizer_dir),
        upsampler_dir=path_of(getattr(flags, "prompt_upsampler_dir", "")),
        guardrail_dir=path_of(flags.guardrail_dir),
        text_guard_dir=path_of(flags.text_guard_dir),
        replicas=1 if flags.replicas is None else flags.replicas,
        cp_size=flags.cp_size,
        tensor_parallel=flags.tensor_parallel,
        cfg_parallel=flags.cfg_parallel,
        backend=flags.backend,
        precision=flags.precision,
        text_encoder_dtype=flags.text_encoder_dtype,
        rope_dtype=flags.rope_dtype,
        offload=offloaded(flags),
        **own,
    )


def request_of(flags: argparse.Namespace, card: ModelCard, *, kind: type[R], **own: Any) -> R:
    """What the flags leave open is the card's; `own`: the fields that a door has flags of its own for."""
    flagged = {
        "height": flags.height,
        "width": flags.width,
        "num_frames": flags.num_video_frames,
        "fps": flags.fps,
        "num_steps": None if flags.num_steps is None else whole("--num_steps", flags.num_steps),
        "guidance": flags.guidance,
        "sampler": flags.sampler,
        "seed": flags.seed,
    }
    asked = {name: value for name, value in flagged.items() if value is not None}
    texts = {"prompt": flags.prompt or "", "negative_prompt": flags.negative_prompt}
    return kind(**texts, **{**card_values(card), **asked, **own})


def invocation_of(
    flags: argparse.Namespace,
    setup: Setup,
    request: Text2WorldRequest,
    *,
    folder: Path,
    remarks: Sequence[str] = (),
) -> Invocation:
    """`folder`: where the videos of a batch file go."""
    batch = Batch(path=Path(flags.batch_input_path), folder=folder) if flags.batch_input_path else None
    return Invocation(
        setup=setup, request=request, batch=batch, dry_run=flags.dry_run, remarks=tuple(remarks)
    )
