"""What the doors of Predict1 have in common: models are folders in --checkpoint_dir, named after their cards.

The flags are those of spec/predict1-diffusion.md, 8.1, and ours.
"""

import argparse
from pathlib import Path

from cosmos_nemo.catalog import CARDS, CatalogError, ModelCard, Task, find_card, nearest_names
from cosmos_nemo.cli.flags import PREDICT1_NAMES, add_machine, add_prompt_models, path_of
from cosmos_nemo.cli.tasks import check_task
from cosmos_nemo.cli.translate import setup_of
from cosmos_nemo.request import VIDEO_SUFFIXES, RequestError, Setup

FLAG_NAMES = {generals: " and ".join(own) for generals, own in PREDICT1_NAMES.items()}
"""What these scripts call flags of general.py, for the errors of whatever lies below the doors."""
VISUAL_FLAG = "--input_image_or_video_path"
VISUAL_LINE = '{"visual_input": "a.mp4"}'
_CHECKPOINTS = "checkpoints"
_WEIGHTS_FILES = (".pt", ".safetensors")

_CONTRADICTIONS = {
    "disable_prompt_upsampler": "offload_prompt_upsampler",
    "disable_guardrail": "offload_guardrail_models",
}
"""Flags that leave a model out, and those that would park it."""


def check_contradictions(flags: argparse.Namespace) -> None:
    """RequestError for a model that is to be both left out and parked.

    Not for video2world.py: the documents' commands for it pass both.
    """
    for left_out, parked in _CONTRADICTIONS.items():
        if getattr(flags, left_out) and getattr(flags, parked):
            raise RequestError(f"--{parked} has no effect beside --{left_out}. Pass one of them.")


def find_model(flags: argparse.Namespace, *, task: Task) -> tuple[ModelCard, Setup]:
    """The card, named or called as the network's folder, and all that does not change from video to video.

    CatalogError if there is no such card, RequestError if another door serves it.
    """
    checkpoints = checkpoints_in(flags.checkpoint_dir)
    weights = Path(flags.diffusion_transformer_dir or flags.model or flags.default_model)
    card = find_card(flags.model) if flags.model else _card_called_as(weights, inside=checkpoints)
    check_task(card, task)
    setup = setup_of(
        flags,
        model=card.name,
        upsamples=not flags.disable_prompt_upsampler,
        num_devices=flags.num_gpus,
        nemo_checkpoint=_checkpoint(weights, card_name=card.name, inside=checkpoints),
        assets_dir=checkpoints,
        text_encoder_dir=path_of(flags.text_encoder_dir),
    )
    return card, setup


def checkpoints_in(given: str | None) -> Path | None:
    """The folder of all models. The default one may be missing: then they are looked for on the hub."""
    if given is not None:
        return Path(given)
    return Path(_CHECKPOINTS) if Path(_CHECKPOINTS).is_dir() else None


def video_path(flags: argparse.Namespace) -> Path:
    """RequestError for a name beside a batch, whose videos have numbers."""
    if flags.batch_input_path and flags.video_save_name is not None:
        raise RequestError(
            "--video_save_name names one video: those of --batch_input_path are 0.mp4, 1.mp4 ... "
            "in --video_save_folder."
        )
    name = flags.video_save_name or "output"
    is_file = Path(name).suffix.lower() in VIDEO_SUFFIXES
    return Path(flags.video_save_folder) / (name if is_file else f"{name}.mp4")


def add_visual_input(group: argparse._ArgumentGroup, *, kinds: str) -> None:
    """`kinds`: of files that the door takes."""
    group.add_argument(VISUAL_FLAG, default=None, metavar="FILE", help=kinds)


def add_visual_prompt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt",
        default=None,
        help="what the video shows; needed with --disable_prompt_upsampler. Predict1's upsampler does not "
        "read it, Predict2's does",
    )


def add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--video_save_name", default=None, help="the file's name; output")
    group.add_argument("--video_save_folder", default="outputs/", help="made if missing; outputs/")


def add_files(group: argparse._ArgumentGroup, *, default_model: str) -> None:
    group.set_defaults(default_model=default_model)
    group.add_argument(
        "--checkpoint_dir",
        default=None,
        help="the folder that holds all models, one folder each; checkpoints",
    )
    group.add_argument(
        "--diffusion_transformer_dir",
        default=None,
        metavar="DIR",
        help=f"in --checkpoint_dir: model.pt or a NeMo checkpoint; {default_model}",
    )
    group.add_argument(
        "--model", default="", metavar="NAME", help="whose sizes the network has; as the folder is called"
    )
    group.add_argument("--tokenizer_dir", default="", help="in --checkpoint_dir: the video tokenizer")
    group.add_argument("--text_encoder_dir", default="", help="the T5 folder; google-t5/t5-11b")


def add_vision_models(parser: argparse.ArgumentParser) -> None:
    """Upsampler and guardrails of the doors that start from an image or a video, and the machine."""
    prompts = parser.add_argument_group("prompt upsampler and guardrails")
    prompts.add_argument("--disable_prompt_upsampler", action="store_true", help="take --prompt as it is")
    add_prompt_models(prompts)
    add_machine(parser.add_argument_group("ranks and memory"), num_devices="num_gpus")


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


def _checkpoint(weights: Path, *, card_name: str, inside: Path | None) -> Path | None:
    """None if the network is to be looked for under its card's name, on the hub in the end."""
    is_there = weights.exists() or (inside is not None and (inside / weights).exists())
    return None if weights == Path(card_name) and not is_there else weights
