"""The command line of inference/world_interpolator.py (spec/predict1-diffusion.md, 5.3 and 8.1).

What the released script read and then forgot (guidance, seed, first frame) counts here; the defaults are the
values that it ran with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_nemo.catalog import Task
from cosmos_nemo.cli.flags import EXIT_STATUS, add_batch, add_video, check_effects, parse_flags
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.predict1 import (
    VISUAL_FLAG,
    VISUAL_LINE,
    add_files,
    add_output,
    add_vision_models,
    add_visual_input,
    add_visual_prompt,
    check_contradictions,
    find_model,
    video_path,
)
from cosmos_nemo.cli.translate import invocation_of, request_of
from cosmos_nemo.request import InterpolationRequest

_DEFAULT_MODEL = "Cosmos-Predict1-7B-WorldInterpolator"


def parse_world_interpolator(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = parse_flags(_parser(), argv)
    check_effects(flags, upsamples=not flags.disable_prompt_upsampler, visual_flag=VISUAL_FLAG)
    check_contradictions(flags)
    path = video_path(flags)
    card, setup = find_model(flags, task=Task.WORLD_INTERPOLATOR)
    request = request_of(
        flags,
        card,
        kind=InterpolationRequest,
        video_path=path,
        visual_input=Path(flags.input_image_or_video_path or ""),
        num_input_frames=flags.num_input_frames,
        frame_stride=flags.frame_stride,
        frame_index_start=flags.frame_index_start,
        num_frame_pairs=flags.num_frame_pairs,
        draws_noise=flags.draw_condition_noise,
    )
    return invocation_of(flags, setup, request, folder=Path(flags.video_save_folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="world_interpolator.py",
        description="Fill in frames between those of a video with a Cosmos WorldInterpolator.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    video = parser.add_argument_group("the video")
    add_visual_input(video, kinds="the video between whose frames others are filled in")
    _add_frames(video)
    add_visual_prompt(video)
    add_batch(video, line=f"{VISUAL_LINE}, instead of {VISUAL_FLAG}")
    add_video(
        video,
        guidance="the model's, -1: only the negative prompt counts",
        seed="the model's, 11",
        num_frames="of a clip, with its two given ones; the model's, 10",
    )
    video.add_argument(
        "--draw_condition_noise",
        action="store_true",
        help="other noise on the given frames at every step, as released; fixed and small without",
    )
    add_output(video)
    add_files(parser.add_argument_group("models and files"), default_model=_DEFAULT_MODEL)
    add_vision_models(parser)
    return parser


def _add_frames(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_input_frames", type=int, default=2, help="that the input must have at least; 2")
    group.add_argument(
        "--frame_stride", type=int, default=1, help="input frames from one given frame to the next; 1"
    )
    group.add_argument("--frame_index_start", type=int, default=0, help="the first given frame; 0")
    group.add_argument(
        "--num_frame_pairs", type=int, default=None, help="clips to make; as many as the input has pairs"
    )
