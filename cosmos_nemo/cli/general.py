"""The command line of inference/general.py, NeMo's own script, with what its video2world.py had beyond it
(spec/nemo-cosmos1.md, 1.1 and 1.4)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cosmos_nemo.catalog import CARDS, ModelCard, Task, find_card
from cosmos_nemo.cli.flags import (
    EXIT_STATUS,
    add_average,
    add_batch,
    add_machine,
    add_prompt_models,
    add_video,
    add_word_limit,
    check_average,
    check_effects,
    parse_flags,
    path_of,
)
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.tasks import check_task
from cosmos_nemo.cli.translate import invocation_of, request_of, setup_of
from cosmos_nemo.cli.variants import choose_variant
from cosmos_nemo.request import RequestError, Text2WorldRequest, Video2WorldRequest

_VISUAL_FLAG = "--conditioned_image_or_video_path"


def parse_general(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = parse_flags(_parser(), argv)
    named, remarks = find_card(flags.model), list[str]()
    card = choose_variant(
        named,
        height=flags.height,
        width=flags.width,
        fps=flags.fps,
        given=Path(flags.nemo_checkpoint or named.name),
        assets_dir=path_of(flags.cosmos_assets_dir),
        remark=remarks.append,
    )
    check_task(card, Task.TEXT2WORLD, Task.VIDEO2WORLD)
    _check_family(flags, card)
    check_average(flags, card)
    check_effects(
        flags,
        upsamples=flags.enable_prompt_upsampler,
        visual_flag=_VISUAL_FLAG if card.task is Task.VIDEO2WORLD else None,
    )
    _check_places(flags)
    setup = setup_of(
        flags,
        model=card.name,
        upsamples=flags.enable_prompt_upsampler,
        num_devices=flags.num_devices,
        nemo_checkpoint=path_of(flags.nemo_checkpoint),
        assets_dir=path_of(flags.cosmos_assets_dir),
        text_encoder_dir=path_of(flags.text_encoder_dir),
        t5_cache_dir=path_of(flags.t5_cache_dir),
        averaged=flags.load_ema,
    )
    request = _request(
        flags,
        card,
        subject_name=flags.subject_name,
        video_path=Path(flags.video_save_path or f"{card.name}.mp4"),
    )
    folder = Path(flags.video_save_folder or "outputs")
    return invocation_of(flags, setup, request, folder=folder, remarks=remarks)


def _request(flags: argparse.Namespace, card: ModelCard, **own: Any) -> Text2WorldRequest:
    if card.task is Task.TEXT2WORLD:
        return request_of(flags, card, kind=Text2WorldRequest, **own)
    if flags.num_input_frames is not None:
        own |= {"num_input_frames": flags.num_input_frames}
    visual_input = Path(flags.conditioned_image_or_video_path or "")
    return request_of(flags, card, kind=Video2WorldRequest, visual_input=visual_input, **own)


def _check_family(flags: argparse.Namespace, card: ModelCard) -> None:
    """RequestError for a flag of models with another task."""
    if card.task is Task.VIDEO2WORLD:
        if flags.word_limit_to_skip_upsampler is not None:
            raise RequestError(
                "--word_limit_to_skip_upsampler has no effect: the upsampler of a Video2World model looks at "
                "a frame, however long the prompt is. Leave it out."
            )
        return
    for flag in (_VISUAL_FLAG, "--num_input_frames"):
        if getattr(flags, flag[2:]) is not None:
            raise RequestError(
                f"{flag} has no effect: {card.name} starts from a prompt alone. Leave it out, or name a "
                "Video2World model with --model."
            )


def _check_places(flags: argparse.Namespace) -> None:
    if flags.batch_input_path and flags.video_save_path:
        raise RequestError(
            "--video_save_path names one video: beside --batch_input_path pass --video_save_folder."
        )
    if flags.video_save_folder and not flags.batch_input_path:
        raise RequestError("--video_save_folder is for a batch: for one video pass --video_save_path.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="general.py",
        description="Make a video with a Cosmos Text2World or Video2World model in NeMo's checkpoint format.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    video = parser.add_argument_group("the video")
    video.add_argument("--prompt", default=None, help="what the video shows")
    video.add_argument(
        _VISUAL_FLAG,
        default=None,
        metavar="FILE",
        help="what a Video2World goes on from: an image or a video",
    )
    video.add_argument(
        "--num_input_frames", type=int, default=None, help="of that file, its last ones: 1 or 9; 1"
    )
    add_batch(video)
    video.add_argument("--subject_name", default="", help="the subject a post-trained model learned")
    add_video(video)
    video.add_argument("--video_save_path", default="", help="an .mp4 or .npy file; MODEL.mp4")
    video.add_argument("--video_save_folder", default="", help="of a batch: 0.mp4 ...; outputs")
    files = parser.add_argument_group("models and files")
    _add_files(files)
    add_average(files)
    prompts = parser.add_argument_group("prompt upsampler and guardrails")
    prompts.add_argument(
        "--enable_prompt_upsampler",
        action="store_true",
        help="let the upsampler describe the scene at length",
    )
    add_word_limit(prompts)
    add_prompt_models(prompts)
    add_machine(parser.add_argument_group("ranks and memory"), num_devices="num_devices")
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default=next(iter(CARDS)), metavar="NAME", help="see cosmos-nemo models")
    group.add_argument("--nemo_checkpoint", default="", help="a NeMo checkpoint; the released one by default")
    group.add_argument("--cosmos_assets_dir", default="", help="a folder with one folder per repository")
    group.add_argument("--tokenizer_dir", default="", help="the video tokenizer's folder")
    group.add_argument("--text_encoder_dir", default="", help="the T5 folder")
    group.add_argument("--t5_cache_dir", default="", help="the Hugging Face cache that holds T5; HF_HOME's")
