"""The command line of inference/video2world.py, as Predict1 and Predict2 published it.

spec/predict1-diffusion.md, 8.1; spec/predict2-video2world.md, 6.1. Family and defaults are the model's.
--keep_input_size does what Predict1's script always did.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cosmos_nemo.catalog import Family, ModelCard, Task
from cosmos_nemo.cli.flags import (
    EXIT_STATUS,
    add_average,
    add_batch,
    add_video,
    check_average,
    check_effects,
    parse_flags,
)
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.predict1 import (
    VISUAL_FLAG,
    VISUAL_LINE,
    add_files,
    add_output,
    add_vision_models,
    add_visual_input,
    add_visual_prompt,
    find_model,
    video_path,
)
from cosmos_nemo.cli.translate import invocation_of, request_of
from cosmos_nemo.cli.variants import choose_variant
from cosmos_nemo.request import Video2WorldRequest

_DEFAULT_MODEL = "Cosmos-Predict1-7B-Video2World"
_OF_PREDICT1 = 9


def parse_video2world(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = parse_flags(_parser(), argv)
    check_effects(flags, upsamples=not flags.disable_prompt_upsampler, visual_flag=VISUAL_FLAG)
    path = video_path(flags)
    remarks = list[str]()
    named, setup = find_model(flags, task=Task.VIDEO2WORLD)
    card = choose_variant(
        named,
        height=flags.height,
        width=flags.width,
        fps=flags.fps,
        given=setup.nemo_checkpoint or Path(named.name),
        assets_dir=setup.assets_dir,
        remark=remarks.append,
    )
    check_average(flags, card)
    setup = replace(setup, model=card.name, averaged=flags.load_ema)
    request = request_of(
        flags,
        card,
        kind=Video2WorldRequest,
        video_path=path,
        visual_input=Path(flags.input_image_or_video_path or ""),
        num_input_frames=_num_input_frames(flags.num_input_frames, card, remark=remarks.append),
        keeps_input_size=flags.keep_input_size,
        **({} if flags.num_overlap_frames is None else {"num_overlap_frames": flags.num_overlap_frames}),
    )
    folder = Path(flags.video_save_folder)
    return invocation_of(flags, setup, request, folder=folder, remarks=remarks)


def _num_input_frames(asked: int, card: ModelCard, *, remark: Callable[[str], None]) -> int:
    """As many as the model can go on from. Commands for Predict2 ask for Predict1's 9 where 5 are meant."""
    if card.network.family is Family.PREDICT2 and asked == _OF_PREDICT1:
        remark(f"{card.name} goes on from 1 or 5 frames: --num_input_frames 9 is taken for 5")
        return max(card.video.given_frames)
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="video2world.py",
        description="Go on from an image or a video with a Cosmos Video2World diffusion model.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    video = parser.add_argument_group("the video")
    add_visual_input(video, kinds="the image or video to go on from")
    video.add_argument(
        "--num_input_frames",
        type=int,
        default=1,
        help="of the input, its last ones: 1 or 9, of Predict2 1 or 5; 1",
    )
    add_visual_prompt(video)
    add_batch(video, line=f"{VISUAL_LINE}, instead of {VISUAL_FLAG}")
    add_video(video, num_frames="8k+1, of Predict2 4k+1; the model's, 121 or 93; more are made in chunks")
    video.add_argument(
        "--num_overlap_frames",
        type=int,
        default=None,
        help="with which a chunk goes on from the one before: 1 or 9, of Predict2 1 or 5; the larger",
    )
    video.add_argument(
        "--keep_input_size",
        action="store_true",
        help="write frames of the input's size; they are made in --height and --width",
    )
    add_output(video)
    files = parser.add_argument_group("models and files")
    add_files(files, default_model=_DEFAULT_MODEL)
    add_average(files)
    add_vision_models(parser)
    return parser
