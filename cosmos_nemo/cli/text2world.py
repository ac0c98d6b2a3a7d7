"""The command line of inference/text2world.py, as Predict1 published it (spec/predict1-diffusion.md, 8.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_nemo.catalog import CARDS, CatalogError, ModelCard, find_card, nearest_names
from cosmos_nemo.cli.flags import (
    EXIT_STATUS,
    add_batch,
    add_machine,
    add_prompt_models,
    add_video,
    check_effects,
    path_of,
)
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.translate import invocation_of, request_of, setup_of
from cosmos_nemo.request import VIDEO_SUFFIXES, RequestError

FLAG_NAMES = {
    "--num_devices": "--num_gpus",
    "--cosmos_assets_dir": "--checkpoint_dir",
    "--nemo_checkpoint": "--diffusion_transformer_dir",
    "--video_save_path": "--video_save_folder and --video_save_name",
}
"""What this script calls flags of general.py, for the errors of whatever lies below the doors."""
_CHECKPOINTS = "checkpoints"
_DEFAULT_MODEL = "Cosmos-Predict1-7B-Text2World"
_WEIGHTS_FILES = (".pt", ".safetensors")

_CONTRADICTIONS = {
    "disable_prompt_upsampler": "offload_prompt_upsampler",
    "disable_guardrail": "offload_guardrail_models",
}
"""Flags that leave a model out, and those that would park it. (The documents' commands of video2world.py pass
both of a pair.)"""


def parse_text2world(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = _parser().parse_args(argv)
    upsamples = not flags.disable_prompt_upsampler
    check_effects(flags, upsamples=upsamples)
    _check_contradictions(flags)
    folder = Path(flags.video_save_folder)
    if flags.batch_input_path and flags.video_save_name is not None:
        raise RequestError(
            "--video_save_name names one video: those of --batch_input_path are 0.mp4, 1.mp4 ... "
            "in --video_save_folder."
        )
    weights = Path(flags.diffusion_transformer_dir)
    checkpoints = _checkpoints(flags.checkpoint_dir)
    card = find_card(flags.model) if flags.model else _card_called_as(weights, inside=checkpoints)
    setup = setup_of(
        flags,
        model=card.name,
        upsamples=upsamples,
        num_devices=flags.num_gpus,
        nemo_checkpoint=_checkpoint(weights, card_name=card.name, inside=checkpoints),
        assets_dir=checkpoints,
        text_encoder_dir=path_of(flags.text_encoder_dir),
    )
    request = request_of(flags, card, video_path=folder / _file_name(flags.video_save_name or "output"))
    return invocation_of(flags, setup, request, folder=folder)


def _check_contradictions(flags: argparse.Namespace) -> None:
    for left_out, parked in _CONTRADICTIONS.items():
        if getattr(flags, left_out) and getattr(flags, parked):
            raise RequestError(f"--{parked} has no effect beside --{left_out}. Pass one of them.")


def _card_called_as(weights: Path, *, inside: Path | None) -> ModelCard:
    """The card that the network's folder is called after."""
    places = (weights, inside / weights if inside is not None else weights)
    is_file = weights.suffix in _WEIGHTS_FILES or any(place.is_file() for place in places)
    name = weights.parent.name if is_file else weights.name
    if name not in CARDS:
        raise CatalogError(
            f"--diffusion_transformer_dir {weights} is no model's name: add --model NAME, whose sizes the "
            f"network has. {nearest_names(name)}"
        )
    return CARDS[name]


def _checkpoints(given: str | None) -> Path | None:
    """The folder of all models. The default one may be missing: then they are looked for on the hub."""
    if given is not None:
        return Path(given)
    return Path(_CHECKPOINTS) if Path(_CHECKPOINTS).is_dir() else None


def _checkpoint(weights: Path, *, card_name: str, inside: Path | None) -> Path | None:
    """None if the network is to be looked for under its card's name, on the hub in the end."""
    is_there = weights.exists() or (inside is not None and (inside / weights).exists())
    return None if weights == Path(card_name) and not is_there else weights


def _file_name(name: str) -> str:
    return name if Path(name).suffix.lower() in VIDEO_SUFFIXES else f"{name}.mp4"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="text2world.py",
        description="Make videos from prompts with a Cosmos Text2World diffusion model.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    video = parser.add_argument_group("the video")
    video.add_argument("--prompt", default=None, help="what the video shows")
    add_batch(video)
    add_video(video)
    video.add_argument("--video_save_name", default=None, help="the file's name; output")
    video.add_argument("--video_save_folder", default="outputs/", help="made if missing; outputs/")
    _add_files(parser.add_argument_group("models and files"))
    prompts = parser.add_argument_group("prompt upsampler and guardrails")
    prompts.add_argument(
        "--disable_prompt_upsampler", action="store_true", help="take the prompt as it is written"
    )
    add_prompt_models(prompts)
    add_machine(parser.add_argument_group("ranks and memory"), num_devices="num_gpus")
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint_dir",
        default=None,
        help="the folder that holds all models, one folder each; checkpoints",
    )
    group.add_argument(
        "--diffusion_transformer_dir",
        default=_DEFAULT_MODEL,
        metavar="DIR",
        help=f"in --checkpoint_dir: model.pt or a NeMo checkpoint; {_DEFAULT_MODEL}",
    )
    group.add_argument(
        "--model", default="", metavar="NAME", help="whose sizes the network has; as the folder is called"
    )
    group.add_argument("--tokenizer_dir", default="", help="in --checkpoint_dir: the video tokenizer")
    group.add_argument("--text_encoder_dir", default="", help="the T5 folder; google-t5/t5-11b")
