"""Flags of the doors -> Setup and requests. Published flags keep their names; standard library only."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_nemo.catalog import CARDS, find_card
from cosmos_nemo.request import (
    BACKENDS,
    CFG_PARALLEL,
    DEFAULT_NEGATIVE_PROMPT,
    OFFLOADABLE,
    ROPE_DTYPES,
    SAMPLER_NAMES,
    TEXT_ENCODER_DTYPES,
    RequestError,
    Setup,
    Text2WorldRequest,
)


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of a door."""

    setup: Setup
    request: Text2WorldRequest
    dry_run: bool = False


def parse_general(argv: Sequence[str]) -> Invocation:
    """The command line of inference/general.py. RequestError or CatalogError for values that cannot be;
    argparse itself exits with 2 for an unknown flag or a word where a number belongs."""
    flags = _general_parser().parse_args(argv)
    card = find_card(flags.model)
    if flags.enable_prompt_upsampler:
        raise RequestError(
            "--enable_prompt_upsampler is not built yet in this version. "
            "Leave it out and write the prompt in detail."
        )
    for flag in ("prompt_upsampler_dir", "guardrail_dir"):
        if getattr(flags, flag):
            raise RequestError(
                f"--{flag} would have no effect: this version runs no such model yet. Leave it out."
            )
    setup = Setup(
        model=card.name,
        nemo_checkpoint=_path(flags.nemo_checkpoint),
        assets_dir=_path(flags.cosmos_assets_dir),
        tokenizer_dir=_path(flags.tokenizer_dir),
        text_encoder_dir=_path(flags.text_encoder_dir),
        t5_cache_dir=_path(flags.t5_cache_dir),
        num_devices=flags.num_devices,
        cp_size=flags.cp_size,
        tensor_parallel=flags.tensor_parallel,
        cfg_parallel=flags.cfg_parallel,
        backend=flags.backend,
        text_encoder_dtype=flags.text_encoder_dtype,
        rope_dtype=flags.rope_dtype,
        offload=frozenset(filter(None, flags.offload.split(","))),
    )
    request = Text2WorldRequest(
        prompt=flags.prompt,
        negative_prompt=flags.negative_prompt,
        subject_name=flags.subject_name,
        height=card.video.height if flags.height is None else flags.height,
        width=card.video.width if flags.width is None else flags.width,
        num_frames=card.video.num_frames if flags.num_video_frames is None else flags.num_video_frames,
        fps=card.video.fps if flags.fps is None else flags.fps,
        num_steps=card.num_steps if flags.num_steps is None else _whole("--num_steps", flags.num_steps),
        guidance=card.guidance if flags.guidance is None else flags.guidance,
        sampler=card.sampler if flags.sampler is None else flags.sampler,
        seed=flags.seed,
        video_path=Path(flags.video_save_path or f"{card.name}.mp4"),
    )
    return Invocation(setup=setup, request=request, dry_run=flags.dry_run)


def _general_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="general.py",
        description="Make a video from a prompt with a Cosmos Text2World model in NeMo's checkpoint format.",
        epilog="Exit status: 0 the video is written; 2 a bad flag or checkpoint; 130 interrupted; 1 else.",
        allow_abbrev=False,
    )
    _add_request(parser.add_argument_group("the video"))
    _add_files(parser.add_argument_group("models and files"))
    _add_machine(parser.add_argument_group("ranks and memory"))
    return parser


def _add_request(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", required=True, help="what the video shows")
    group.add_argument(
        "--negative_prompt", default=DEFAULT_NEGATIVE_PROMPT, help='what to avoid; "" for none'
    )
    group.add_argument("--subject_name", default="", help="the subject a post-trained model learned")
    group.add_argument("--guidance", type=float, default=None, help="g of cond + g (cond - uncond); 7")
    group.add_argument("--sampler", default=None, metavar="NAME", help=", ".join(SAMPLER_NAMES) + "; RES")
    group.add_argument("--num_steps", type=float, default=None, help="sampling steps; 35")
    group.add_argument(
        "--seed", type=int, default=1, help="of the noise: the same video for the same seed; 1"
    )
    group.add_argument("--height", type=int, default=None, help="pixels, a multiple of 16; the model's, 704")
    group.add_argument("--width", type=int, default=None, help="pixels, a multiple of 16; the model's, 1280")
    group.add_argument("--num_video_frames", type=int, default=None, help="8k+1; the model's, 121")
    group.add_argument("--fps", type=int, default=None, help="frames per second; 24")
    group.add_argument("--video_save_path", default=None, help="an .mp4 or .npy file; MODEL.mp4")
    group.add_argument("--enable_prompt_upsampler", action="store_true", help="not built yet: refused")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default=next(iter(CARDS)), metavar="NAME", help=", ".join(CARDS))
    group.add_argument("--nemo_checkpoint", default="", help="a NeMo checkpoint; the released one by default")
    group.add_argument("--cosmos_assets_dir", default="", help="a folder with one folder per repository")
    group.add_argument("--tokenizer_dir", default="", help="the video tokenizer's folder")
    group.add_argument("--text_encoder_dir", default="", help="the T5 folder")
    group.add_argument("--t5_cache_dir", default="", help="the Hugging Face cache that holds T5; HF_HOME's")
    group.add_argument("--prompt_upsampler_dir", default="", help=argparse.SUPPRESS)
    group.add_argument("--guardrail_dir", default="", help=argparse.SUPPRESS)


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_devices", type=int, default=None, help="ranks that take part; all")
    group.add_argument(
        "--cp_size", type=int, default=None, help="context parallel ranks; what the others leave"
    )
    group.add_argument("--tensor_parallel", type=int, default=1, help="tensor parallel ranks; 1")
    group.add_argument(
        "--cfg_parallel", default="auto", metavar="|".join(CFG_PARALLEL), help="guidance branches apart"
    )
    group.add_argument(
        "--backend", default="auto", metavar="|".join(BACKENDS), help="Transformer Engine or torch"
    )
    group.add_argument(
        "--offload", default="", metavar="STAGE,...", help=f"park between uses: {', '.join(OFFLOADABLE)}"
    )
    group.add_argument(
        "--text_encoder_dtype",
        default="auto",
        metavar="|".join(TEXT_ENCODER_DTYPES),
        help="auto: bfloat16 on a GPU, float32 on the CPU",
    )
    group.add_argument(
        "--rope_dtype",
        default="float32",
        metavar="|".join(ROPE_DTYPES),
        help="of the rotary angles; bfloat16 rounds them as NVIDIA's scripts did",
    )
    group.add_argument(
        "--dry_run", action="store_true", help="check the request and print the plan, nothing else"
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _whole(flag: str, value: float) -> int:
    if value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise RequestError(f"{flag} {value} is no whole number. 35 is the released value.")
    return int(value)
