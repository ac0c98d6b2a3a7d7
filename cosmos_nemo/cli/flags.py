"""Flags that several doors have, under the names that they have in common."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from cosmos_nemo.catalog import Family, ModelCard
from cosmos_nemo.request import (
    BACKENDS,
    CFG_PARALLEL,
    DEFAULT_NEGATIVE_PROMPT,
    OFFLOADABLE,
    PRECISIONS,
    ROPE_DTYPES,
    SAMPLER_NAMES,
    TEXT_ENCODER_DTYPES,
    RequestError,
)

EXIT_STATUS = (
    "Exit status: 0 everything is written; 2 a bad flag or checkpoint; 3 a guardrail blocked something; "
    "130 interrupted; 1 anything else."
)

_OFFLOAD_FLAGS = {
    "prompt_upsampler": "offload_prompt_upsampler",
    "guardrails": "offload_guardrail_models",
    "text_encoder": "offload_text_encoder_model",
    "denoise": "offload_diffusion_transformer",
    "tokenizer": "offload_tokenizer",
    "token_generation": "offload_ar_model",
    "diffusion_decoder": "offload_diffusion_decoder",
}
"""The released flag of each model that may be parked between uses."""

_INTERPOLATOR, _VIDEO2WORLD = "world_interpolator.py", "video2world.py"
_OF_SOME_DOORS = {
    "--word_limit_to_skip_upsampler": "text2world.py, whose upsampler reads prompts",
    "--subject_name": "general.py",
    "--conditioned_image_or_video_path": "general.py",
    "--input_image_or_video_path": f"{_VIDEO2WORLD} and {_INTERPOLATOR}",
    "--num_input_frames": f"{_VIDEO2WORLD} and {_INTERPOLATOR}",
    "--num_overlap_frames": _VIDEO2WORLD,
    "--keep_input_size": _VIDEO2WORLD,
    "--frame_stride": _INTERPOLATOR,
    "--frame_index_start": _INTERPOLATOR,
    "--num_frame_pairs": _INTERPOLATOR,
    "--draw_condition_noise": _INTERPOLATOR,
    "--load_ema": f"{_VIDEO2WORLD}, text2image.py and general.py",
    "--aspect_ratio": "text2image.py (here: --height and --width)",
}
"""Flags that a person may expect of every door."""
PREDICT1_NAMES = {
    "--num_devices": ("--num_gpus",),
    "--cosmos_assets_dir": ("--checkpoint_dir",),
    "--nemo_checkpoint": ("--diffusion_transformer_dir",),
    "--video_save_path": ("--video_save_folder", "--video_save_name"),
    "--conditioned_image_or_video_path": ("--input_image_or_video_path",),
}
"""What Predict1's scripts call flags of general.py."""
TEXT2IMAGE_NAMES = {
    "--num_devices": ("--num_gpus",),
    "--cosmos_assets_dir": ("--checkpoint_dir",),
    "--nemo_checkpoint": ("--dit_path",),
    "--model": ("--model_size",),
    "--video_save_path": ("--save_path",),
    "--batch_input_path": ("--batch_input_json",),
}
"""What Predict2's text2image.py calls them."""
_OTHER_NAMES = {
    generals: (*PREDICT1_NAMES.get(generals, ()), *TEXT2IMAGE_NAMES.get(generals, ()))
    for generals in PREDICT1_NAMES | TEXT2IMAGE_NAMES
} | {
    own: (generals, *elsewhere.get(generals, ()))
    for here, elsewhere in ((PREDICT1_NAMES, TEXT2IMAGE_NAMES), (TEXT2IMAGE_NAMES, PREDICT1_NAMES))
    for generals, names in here.items()
    for own in names
}


class OtherDoorsFlag(RequestError):
    """A flag of another script. Its names are meant as they stand, whatever this door calls the same."""


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """RequestError for a flag that only other doors have; for any other unknown one argparse exits with 2."""
    flags, unknown = parser.parse_known_args(argv)
    own_flags = set(re.findall(r"--\w+", parser.format_usage()))
    for word in unknown:
        flag = word.partition("=")[0]
        if here := [name for name in dict.fromkeys(_OTHER_NAMES.get(flag, ())) if name in own_flags]:
            raise OtherDoorsFlag(f"{parser.prog} has {' and '.join(here)} instead of {flag}.")
        if flag in _OF_SOME_DOORS:
            raise OtherDoorsFlag(
                f"{flag} is for {_OF_SOME_DOORS[flag]}, not for {parser.prog}. Leave it out."
            )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return flags


def add_video(
    group: argparse._ArgumentGroup,
    *,
    guidance: str = "7",
    seed: str = "1",
    num_frames: str = "8k+1; the model's, 121",
) -> None:
    """What the video is like; None stands for the card's own value. The arguments say what the door's is."""
    group.add_argument(
        "--negative_prompt", default=DEFAULT_NEGATIVE_PROMPT, help='what to avoid; "" for none'
    )
    add_sampling(group, guidance=guidance, seed=seed)
    group.add_argument(
        "--height", type=int, default=None, help="pixels, a multiple of 16; the model's own, mostly 704"
    )
    group.add_argument(
        "--width", type=int, default=None, help="pixels, a multiple of 16; the model's own, mostly 1280"
    )
    group.add_argument("--num_video_frames", type=int, default=None, help=num_frames)
    group.add_argument("--fps", type=int, default=None, help="frames per second; the model's own, mostly 24")


def add_sampling(group: argparse._ArgumentGroup, *, guidance: str, seed: str, of: str = "video") -> None:
    """How it is drawn; `of`: what is made."""
    group.add_argument(
        "--guidance", type=float, default=None, help=f"g of cond + g (cond - uncond); {guidance}"
    )
    group.add_argument(
        "--sampler", default=None, metavar="NAME", help=", ".join(SAMPLER_NAMES) + "; the model's own"
    )
    group.add_argument("--num_steps", type=float, default=None, help="sampling steps; 35")
    group.add_argument(
        "--seed", type=int, default=None, help=f"of the noise: the same {of} for the same seed; {seed}"
    )


def add_batch(
    group: argparse._ArgumentGroup, *, line: str = '{"prompt": "..."}, instead of --prompt'
) -> None:
    """`line`: what a line looks like, and instead of what."""
    group.add_argument(
        "--batch_input_path", default="", help=f"a file of lines like {line}; run again, it goes on"
    )


def add_word_limit(group: argparse._ArgumentGroup) -> None:
    """For the upsampler that makes prompts longer; the one that looks at a frame knows no such limit."""
    group.add_argument(
        "--word_limit_to_skip_upsampler",
        type=int,
        default=None,
        help="prompts of more words are not upsampled; 250",
    )


def add_prompt_models(group: argparse._ArgumentGroup) -> None:
    """Upsampler and guardrails, but for the flag that turns the upsampler on or off."""
    group.add_argument("--prompt_upsampler_dir", default="", help="the prompt upsampler's folder")
    add_guardrails(group)


def add_guardrails(group: argparse._ArgumentGroup, *, of: str = "video", reads_prompts: bool = True) -> None:
    """`of`: what is made."""
    judged = f"neither prompts nor {of}s" if reads_prompts else f"no {of}s"
    group.add_argument("--disable_guardrail", action="store_true", help=f"judge {judged}")
    group.add_argument("--guardrail_dir", default="", help="the guardrails' folder")
    if reads_prompts:
        group.add_argument("--text_guard_dir", default="", help="Llama Guard's folder")
    else:
        group.set_defaults(text_guard_dir="")


def add_machine(
    group: argparse._ArgumentGroup,
    *,
    num_devices: str,
    stages: Sequence[str] = OFFLOADABLE,
    tensor_parallel: int | None = 1,
) -> None:
    """`num_devices`: the door's name for the number of ranks; `stages`: those of its pipeline.

    tensor_parallel: how many ranks if none are asked for, None for as many as can be.
    """
    group.add_argument(f"--{num_devices}", type=int, default=None, help="ranks that take part; all")
    group.add_argument(
        "--cp_size", type=int, default=None, help="context parallel ranks; what the others leave"
    )
    group.add_argument(
        "--tensor_parallel",
        type=int,
        default=tensor_parallel,
        help=f"tensor parallel ranks; {tensor_parallel or 'as many as can be'}",
    )
    group.add_argument(
        "--cfg_parallel", default="auto", metavar="|".join(CFG_PARALLEL), help="guidance branches apart"
    )
    group.add_argument(
        "--replicas", type=int, default=None, help="groups of ranks that share a batch's videos; 1"
    )
    group.add_argument(
        "--backend", default="auto", metavar="|".join(BACKENDS), help="Transformer Engine or torch"
    )
    group.add_argument(
        "--precision",
        default="bf16",
        metavar="|".join(PRECISIONS),
        help="of the diffusion network; fp8 (a GPU from Ada or Hopper on) is faster",
    )
    group.add_argument(
        "--offload",
        default="",
        metavar="STAGE,...",
        help=f"park between uses: all, or some of {', '.join(stages)}",
    )
    for stage in stages:
        flag = _OFFLOAD_FLAGS[stage]
        group.add_argument(f"--{flag}", action="store_true", help=f"the same as --offload {stage}")
    group.set_defaults(stages=tuple(stages))
    if "text_encoder" in stages:
        group.add_argument(
            "--text_encoder_dtype",
            default="auto",
            metavar="|".join(TEXT_ENCODER_DTYPES),
            help="auto: bfloat16 on a GPU, float32 on the CPU",
        )
    else:
        group.set_defaults(text_encoder_dtype="auto")
    group.add_argument(
        "--rope_dtype",
        default="float32",
        metavar="|".join(ROPE_DTYPES),
        help="of the rotary angles; bfloat16 rounds them as NVIDIA's scripts did",
    )
    group.add_argument(
        "--dry_run", action="store_true", help="check the request and print the plan, nothing else"
    )


def offloaded(flags: argparse.Namespace) -> frozenset[str]:
    """The stages named by --offload and by the released flags; RequestError for one that does not run."""
    named = {name.strip() for name in flags.offload.split(",")} - {""}
    if "all" in named:
        named = (named - {"all"}) | set(flags.stages)
    for name in sorted(named.difference(flags.stages)):
        raise RequestError(f"--offload {name} is unknown. Pass one of {', '.join(flags.stages)}.")
    flagged = {stage for stage, flag in _OFFLOAD_FLAGS.items() if getattr(flags, flag, False)}
    return frozenset(named | flagged)


def check_effects(flags: argparse.Namespace, *, upsamples: bool, visual_flag: str | None = None) -> None:
    """RequestError for a flag that has no effect beside the others, or for one that is missing.

    visual_flag: the flag that names the image or video, where the model starts from one. Its upsampler writes
    the prompt, so that none need be given.
    """
    _check_prompt_models(flags, upsamples=upsamples)
    if flags.replicas is not None and not flags.batch_input_path:
        raise RequestError(
            "--replicas shares the videos of a batch: it has no effect without --batch_input_path."
        )
    for flag in ("--prompt", visual_flag):
        if flags.batch_input_path and flag is not None and getattr(flags, flag[2:]) is not None:
            raise RequestError(f"{flag} has no effect beside --batch_input_path. Pass one of them.")
    if flags.batch_input_path:
        return
    if visual_flag is not None and not getattr(flags, visual_flag[2:]):
        raise RequestError(
            f"{visual_flag} is missing. Name the file to start from, or pass --batch_input_path FILE."
        )
    if flags.prompt is None and not (upsamples and visual_flag is not None):
        raise RequestError("--prompt is missing. Describe what to make, or pass --batch_input_path FILE.")


def _check_prompt_models(flags: argparse.Namespace, *, upsamples: bool) -> None:
    if not upsamples:
        for flag in ("--prompt_upsampler_dir", "--word_limit_to_skip_upsampler"):
            if getattr(flags, flag[2:], None) not in (None, ""):
                raise RequestError(f"{flag} has no effect: no prompt is upsampled. Leave it out.")
    if flags.disable_guardrail:
        for flag in ("--guardrail_dir", "--text_guard_dir"):
            if getattr(flags, flag[2:]):
                raise RequestError(f"{flag} has no effect beside --disable_guardrail. Pass one of them.")


def add_average(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--load_ema", action="store_true", help="of a .pt of Predict2, the moving average of the weights"
    )


def check_average(flags: argparse.Namespace, card: ModelCard) -> None:
    """RequestError for a model whose files hold no average."""
    if flags.load_ema and card.network.family is not Family.PREDICT2:
        raise RequestError(f"--load_ema is for Predict2's files, not for {card.name}. Leave it out.")


def path_of(text: str) -> Path | None:
    return Path(text) if text else None


def whole(flag: str, value: float) -> int:
    if value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise RequestError(f"{flag} {value} is no whole number. 35 is the released value.")
    return int(value)
