"""The command line of inference/text2image.py, as Predict2 published it (spec/predict2-video2world.md, 6.2).

What is not in the released script, and the folders, are as in the other doors.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_nemo.catalog import find_card
from cosmos_nemo.cli.flags import (
    EXIT_STATUS,
    TEXT2IMAGE_NAMES,
    add_average,
    add_guardrails,
    add_machine,
    add_sampling,
    check_effects,
    parse_flags,
    path_of,
)
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.predict1 import checkpoints_in
from cosmos_nemo.cli.translate import invocation_of, request_of, setup_of
from cosmos_nemo.request import OFFLOADABLE, RequestError, Text2ImageRequest

FLAG_NAMES = {generals: " and ".join(own) for generals, own in TEXT2IMAGE_NAMES.items()}
"""What this script calls flags of general.py, for the errors of whatever lies below the doors."""
_MODEL = "Cosmos-Predict2-{size}-Text2Image"
_SIZES = ("2B", "14B")
_HEIGHT_WIDTH = {
    "1:1": (1024, 1024),
    "4:3": (880, 1168),
    "3:4": (1168, 880),
    "16:9": (768, 1360),
    "9:16": (1360, 768),
}
"""Trained, by the ratio of width to height (spec, 4.5)."""
_WITHOUT_UPSAMPLER = tuple(stage for stage in OFFLOADABLE if stage != "prompt_upsampler")
_IMAGE_PATH = "output/generated_image.jpg"


def parse_text2image(argv: Sequence[str]) -> Invocation:
    """RequestError for values that cannot be; argparse itself exits with 2 for an unknown flag or a word
    where a number belongs."""
    flags = parse_flags(_parser(), argv)
    check_effects(flags, upsamples=False)
    if flags.batch_input_path and flags.save_path is not None:
        raise RequestError(
            "--save_path names one image: the entries of --batch_input_json say where theirs go."
        )
    card = find_card(_MODEL.format(size=flags.model_size))
    flags.height, flags.width = _height_width(flags)
    setup = setup_of(
        flags,
        model=card.name,
        upsamples=False,
        num_devices=flags.num_gpus,
        nemo_checkpoint=path_of(flags.dit_path),
        assets_dir=checkpoints_in(flags.checkpoint_dir),
        text_encoder_dir=path_of(flags.text_encoder_dir),
        averaged=flags.load_ema,
    )
    request = request_of(flags, card, kind=Text2ImageRequest, video_path=Path(flags.save_path or _IMAGE_PATH))
    return invocation_of(flags, setup, request, folder=Path())


def _height_width(flags: argparse.Namespace) -> tuple[int | None, int | None]:
    """None for what is the card's own."""
    if flags.aspect_ratio is None:
        return flags.height, flags.width
    for flag in ("--height", "--width"):
        if getattr(flags, flag[2:]) is not None:
            raise RequestError(f"{flag} has no effect beside --aspect_ratio. Pass one of them.")
    return _HEIGHT_WIDTH[flags.aspect_ratio]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="text2image.py",
        description="Make images from prompts with a Text2Image model of Predict2.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    parser.set_defaults(num_video_frames=None, fps=None)
    _add_image(parser.add_argument_group("the image"))
    _add_files(parser.add_argument_group("models and files"))
    add_guardrails(parser.add_argument_group("guardrails"), of="image")
    machine = parser.add_argument_group("ranks and memory")
    add_machine(machine, num_devices="num_gpus", stages=_WITHOUT_UPSAMPLER)
    machine.add_argument(
        "--offload_guardrail",
        dest="offload_guardrail_models",
        action="store_true",
        help="the same as --offload guardrails",
    )
    return parser


def _add_image(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", default=None, help="what the image shows")
    group.add_argument(
        "--batch_input_json",
        dest="batch_input_path",
        default="",
        metavar="FILE",
        help='a list of entries like {"prompt": "...", "output_image": "a.jpg"}, instead of --prompt; run '
        "again, it goes on",
    )
    group.add_argument("--negative_prompt", default="", help="what to avoid; none")
    add_sampling(group, guidance="4", seed="0", of="image")
    group.add_argument(
        "--aspect_ratio", choices=_HEIGHT_WIDTH, default=None, help="of width to height; 16:9, 1360 x 768"
    )
    for side in ("height", "width"):
        group.add_argument(
            f"--{side}", type=int, default=None, help="pixels, a multiple of 16, instead of --aspect_ratio"
        )
    group.add_argument(
        "--save_path", default=None, metavar="FILE", help=f"a .jpg or .png file; {_IMAGE_PATH}"
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model_size", choices=_SIZES, default=_SIZES[0], help="parameters; 2B")
    group.add_argument(
        "--checkpoint_dir",
        default=None,
        help="the folder that holds all models, one folder each; checkpoints",
    )
    group.add_argument(
        "--dit_path",
        default="",
        metavar="PATH",
        help="a network of that size: a .pt or a NeMo checkpoint, in --checkpoint_dir or elsewhere",
    )
    add_average(group)
    group.add_argument("--tokenizer_dir", default="", help="in --checkpoint_dir: the video tokenizer")
    group.add_argument("--text_encoder_dir", default="", help="the T5 folder; google-t5/t5-11b")
