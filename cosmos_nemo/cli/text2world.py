"""The command line of inference/text2world.py, as Predict1 published it (spec/predict1-diffusion.md, 8.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_nemo.catalog import Task
from cosmos_nemo.cli.flags import (
    EXIT_STATUS,
    add_batch,
    add_machine,
    add_prompt_models,
    add_video,
    add_word_limit,
    check_effects,
    parse_flags,
)
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.predict1 import add_files, add_output, check_contradictions, find_model, video_path
from cosmos_nemo.cli.translate import invocation_of, request_of
from cosmos_nemo.request import Text2WorldRequest

_DEFAULT_MODEL = "Cosmos-Predict1-7B-Text2World"


def parse_text2world(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = parse_flags(_parser(), argv)
    check_effects(flags, upsamples=not flags.disable_prompt_upsampler)
    check_contradictions(flags)
    path = video_path(flags)
    card, setup = find_model(flags, task=Task.TEXT2WORLD)
    request = request_of(flags, card, kind=Text2WorldRequest, video_path=path)
    return invocation_of(flags, setup, request, folder=Path(flags.video_save_folder))


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
    add_output(video)
    add_files(parser.add_argument_group("models and files"), default_model=_DEFAULT_MODEL)
    prompts = parser.add_argument_group("prompt upsampler and guardrails")
    prompts.add_argument(
        "--disable_prompt_upsampler", action="store_true", help="take the prompt as it is written"
    )
    add_word_limit(prompts)
    add_prompt_models(prompts)
    add_machine(parser.add_argument_group("ranks and memory"), num_devices="num_gpus")
    return parser
