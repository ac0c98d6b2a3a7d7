"""The command line of inference/base.py, as Predict1 published it (spec/predict1-autoregressive.md, 7).

--batch_size, --top_k, and what all doors have for ranks, memory and folders are ours. The decoder's steps and
guidance, which the released script had no flags for, can be changed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.cli.flags import EXIT_STATUS, add_batch, add_guardrails, add_machine, parse_flags, path_of
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.predict1 import (
    FLAG_NAMES as PREDICT1_FLAG_NAMES,
)
from cosmos_nemo.cli.predict1 import (
    VISUAL_FLAG,
    VISUAL_LINE,
    add_output,
    add_visual_input,
    find_model,
    video_path,
)
from cosmos_nemo.cli.translate import invocation_of
from cosmos_nemo.request import (
    OFFLOADABLE_OF_TOKENS,
    AutoregressiveRequest,
    RequestError,
    card_values,
)

FLAG_NAMES = {
    **PREDICT1_FLAG_NAMES,
    "--nemo_checkpoint": "--ar_model_dir",
    "--diffusion_transformer_dir": "--ar_model_dir",
}
"""What this door calls flags of general.py and of Predict1's other scripts."""
_DEFAULT_MODEL = "Cosmos-Predict1-4B"
_DECODER_FLAGS = ("--num_steps", "--guidance", "--sampler", "--diffusion_decoder_dir")


def parse_autoregressive(argv: Sequence[str]) -> Invocation:
    """RequestError or CatalogError for values that cannot be; argparse itself exits with 2 for an unknown
    flag or a word where a number belongs."""
    flags = parse_flags(_parser(), argv)
    _check_effects(flags)
    path = video_path(flags)
    card, setup = find_model(flags, task=Task.AUTOREGRESSIVE)
    if not card.has_diffusion_decoder:
        _check_no_decoder(flags, card)
    setup = replace(
        setup,
        discrete_tokenizer_dir=path_of(flags.discrete_tokenizer_dir),
        diffusion_decoder_dir=path_of(flags.diffusion_decoder_dir),
        decodes_by_diffusion=card.has_diffusion_decoder and not flags.disable_diffusion_decoder,
        batch_size=flags.batch_size,
    )
    request = _request(flags, card, path)
    return invocation_of(flags, setup, request, folder=Path(flags.video_save_folder))


def _request(flags: argparse.Namespace, card: ModelCard, path: Path) -> AutoregressiveRequest:
    assert card.tokens is not None
    top_p = flags.top_p
    if top_p is None and flags.top_k is None:
        top_p = card.tokens.top_p
    names = ("num_steps", "guidance", "sampler", "seed", "temperature")
    asked = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    return AutoregressiveRequest(
        prompt="",
        video_path=path,
        visual_input=Path(flags.input_image_or_video_path or ""),
        num_input_frames=1 if flags.input_type == "image" else flags.num_input_frames,
        **card_values(card) | asked | {"top_p": top_p, "top_k": flags.top_k},
    )


def _check_effects(flags: argparse.Namespace) -> None:
    """RequestError for a flag that has no effect beside the others, or for one that is missing."""
    if flags.batch_input_path and flags.input_image_or_video_path is not None:
        raise RequestError(f"{VISUAL_FLAG} has no effect beside --batch_input_path. Pass one of them.")
    if not flags.batch_input_path:
        if not flags.input_image_or_video_path:
            raise RequestError(
                f"{VISUAL_FLAG} is missing. Name the file to start from, or pass --batch_input_path FILE."
            )
        for flag, given in (
            ("--replicas", flags.replicas is not None),
            ("--batch_size", flags.batch_size != 1),
        ):
            if given:
                raise RequestError(
                    f"{flag} is for the videos of a batch: it has no effect without --batch_input_path."
                )
    if flags.disable_diffusion_decoder:
        for flag in _DECODER_FLAGS:
            if getattr(flags, flag[2:]) not in (None, ""):
                raise RequestError(f"{flag} has no effect beside --disable_diffusion_decoder. Leave it out.")
    if flags.disable_guardrail and flags.guardrail_dir:
        raise RequestError("--guardrail_dir has no effect beside --disable_guardrail. Pass one of them.")


def _check_no_decoder(flags: argparse.Namespace, card: ModelCard) -> None:
    """RequestError for a flag of the diffusion decoder, which this model does not have."""
    for flag in (*_DECODER_FLAGS, "--tokenizer_dir", "--offload_diffusion_decoder"):
        given = getattr(flags, flag[2:])
        if given is not None and given is not False and given != "":
            raise RequestError(
                f"{card.name} comes without a diffusion decoder, and {flag} is for one: leave it out. The "
                "frames are made by the discrete tokenizer."
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="base.py",
        description="Go on from an image or a video with a Cosmos autoregressive model, 33 frames.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    video = parser.add_argument_group("the video")
    add_visual_input(video, kinds="the image or video to go on from")
    video.add_argument(
        "--input_type",
        default="video",
        choices=("image", "video"),
        help="image: goes on from one frame; video",
    )
    video.add_argument("--num_input_frames", type=int, default=9, help="of a video, its last ones: 1 or 9; 9")
    add_batch(video, line=f"{VISUAL_LINE}, instead of {VISUAL_FLAG}")
    video.add_argument(
        "--batch_size", type=int, default=1, help="videos of a batch whose tokens are drawn together; 1"
    )
    _add_sampling(video)
    add_output(video)
    _add_files(parser.add_argument_group("models and files"))
    guards = parser.add_argument_group("guardrails")
    add_guardrails(guards, reads_prompts=False)
    add_machine(
        parser.add_argument_group("ranks and memory"),
        num_devices="num_gpus",
        stages=OFFLOADABLE_OF_TOKENS,
        tensor_parallel=None,
    )
    parser.set_defaults(disable_prompt_upsampler=True, text_encoder_dir="")
    return parser


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperature", type=float, default=None, help="of the tokens' logits; 0 is greedy; 1"
    )
    group.add_argument(
        "--top_p", type=float, default=None, help="draw from the likeliest tokens of this probability; 0.8"
    )
    group.add_argument(
        "--top_k", type=int, default=None, help="draw from so many of the likeliest instead; not with --top_p"
    )
    group.add_argument(
        "--seed", type=int, default=None, help="of the draws: the same video for the same seed; 0"
    )
    group.add_argument(
        "--disable_diffusion_decoder",
        action="store_true",
        help="make the frames with the tokenizer's own decoder, a nano model's only one: faster, less sharp",
    )
    group.add_argument("--num_steps", type=int, default=None, help="of the diffusion decoder; 15")
    group.add_argument(
        "--guidance", type=float, default=None, help="of the decoder, g of cond + g (cond - uncond); 1.8"
    )
    group.add_argument(
        "--sampler",
        default=None,
        metavar="NAME",
        help="of the decoder: RES, EDM; EDM",
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.set_defaults(default_model=_DEFAULT_MODEL)
    group.add_argument(
        "--checkpoint_dir",
        default=None,
        help="the folder that holds all models, one folder each; checkpoints",
    )
    group.add_argument(
        "--ar_model_dir",
        dest="diffusion_transformer_dir",
        default=None,
        metavar="DIR",
        help=f"in --checkpoint_dir: model.pt or a NeMo checkpoint; {_DEFAULT_MODEL}",
    )
    group.add_argument(
        "--model", default="", metavar="NAME", help="whose sizes the network has; as the folder is called"
    )
    group.add_argument("--discrete_tokenizer_dir", default="", help="the tokenizer that makes ids of frames")
    group.add_argument("--diffusion_decoder_dir", default="", help="the network that makes latents of ids")
    group.add_argument("--tokenizer_dir", default="", help="the tokenizer that makes frames of latents")
