"""Where the models of a run lie, and whether their headers are those of the card. No weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cosmos_nemo.catalog import (
    DiTShape,
    Family,
    ModelCard,
    Task,
    TokenizerShape,
    TokenModel,
    with_overrides,
)
from cosmos_nemo.checkpoint.aux_vars import read_generic_text
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.checkpoint.locate import (
    diffusion_decoder_of,
    discrete_tokenizer_of,
    guardrail_of,
    locate,
    network_in,
    text_encoder_of,
    text_guard_of,
    tokenizer_of,
    upsampler_of,
    weights_of,
)
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.models.video_tokenizer.model import PARTS
from cosmos_nemo.request import RequestError, Setup
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.guardrail import WORD_LISTS
from cosmos_nemo.stages.guardrail.text_guard import check_text_guard
from cosmos_nemo.stages.guardrail.video_guard import check_video_guard
from cosmos_nemo.stages.image_upsampler import check_image_upsampler
from cosmos_nemo.stages.prompt_refiner import check_refiner
from cosmos_nemo.stages.prompt_upsampler import check_upsampler
from cosmos_nemo.stages.text_folder import check_text_folder
from cosmos_nemo.stages.tokenizer_choice import tokenizer_for
from cosmos_nemo.stages.tokenizer_folder import read_statistics


@dataclass(frozen=True, kw_only=True)
class Files:
    """A folder or file of each model; None for what is not needed, or what a dry run did not find."""

    weights: Path | None = None
    discrete_tokenizer: Path | None = None
    diffusion_decoder: Path | None = None
    tokenizer: Path | None = None
    text_encoder: Path | None = None
    upsampler: Path | None = None
    guardrail: Path | None = None
    text_guard: Path | None = None

    def found(self) -> Mapping[str, Path]:
        """Field name -> path of those that are there."""
        paths = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in paths.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Which models a run needs, by the names of `Files`."""

    names: tuple[str, ...]

    def are_met(self, files: Files) -> bool:
        return all(name in files.found() for name in self.names)


def needs_of(card: ModelCard, setup: Setup) -> Needs:
    """RequestError for a prompt upsampler, or half a guardrail, that neither card nor flags name."""
    names = ["weights", "tokenizer", "text_encoder"]
    if card.tokens is not None:
        names = ["weights", "discrete_tokenizer"]
        names += ["diffusion_decoder", "tokenizer"] if setup.decodes_by_diffusion else []
    if setup.upsamples:
        if not (card.sources.upsampler or setup.upsampler_dir):
            raise RequestError(
                f"{card.name} comes without a prompt upsampler: pass one with --prompt_upsampler_dir, "
                "or write the prompt in detail and leave the upsampler out (no --enable_prompt_upsampler in "
                "general.py, --disable_prompt_upsampler in the other scripts)."
            )
        names.append("upsampler")
    if has_guardrails(card, setup):
        guards = {"guardrail": ("--guardrail_dir", setup.guardrail_dir, card.sources.guardrail)}
        if reads_prompts(card):
            guards["text_guard"] = ("--text_guard_dir", setup.text_guard_dir, card.sources.text_guard)
        for flag, given, source in guards.values():
            if not (given or source):
                raise RequestError(f"{card.name} comes without guardrails: pass {flag} too.")
        names += guards
    return Needs(names=tuple(names))


def reads_prompts(card: ModelCard) -> bool:
    return card.tokens is None or card.tokens.network.takes_text


def has_guardrails(card: ModelCard, setup: Setup) -> bool:
    """The card's, or those of the flags, unless they are disabled."""
    given = setup.guardrail_dir is not None or setup.text_guard_dir is not None
    return setup.guardrails and (bool(card.sources.guardrail) or given)


def find_files(card: ModelCard, setup: Setup, needs: Needs, *, download: bool) -> Files:
    """LocateError for what is given and missing, or nowhere to be had: without `download`, that is what lies
    neither here nor on the hub."""
    places = {
        "weights": (weights_of, setup.nemo_checkpoint),
        "discrete_tokenizer": (discrete_tokenizer_of, setup.discrete_tokenizer_dir),
        "diffusion_decoder": (diffusion_decoder_of, setup.diffusion_decoder_dir),
        "tokenizer": (tokenizer_of, setup.tokenizer_dir),
        "text_encoder": (text_encoder_of, setup.text_encoder_dir),
        "upsampler": (upsampler_of, setup.upsampler_dir),
        "guardrail": (guardrail_of, setup.guardrail_dir),
        "text_guard": (text_guard_of, setup.text_guard_dir),
    }
    found = {}
    for name in needs.names:
        files_of, given = places[name]
        files = upsampler_of(card, given) if name == "upsampler" else files_of(card)
        found[name] = locate(
            files,
            given=given,
            assets_dir=setup.assets_dir,
            cache_dir=setup.t5_cache_dir if name == "text_encoder" else None,
            download=download or not files.is_released,
        )
    if (weights := found.get("weights")) is not None:
        found["weights"] = network_in(weights, card)
    return Files(**found)


def card_with_files(card: ModelCard, files: Files) -> ModelCard:
    """`card` with what the found files' card.json say."""
    places = (files.weights, files.discrete_tokenizer, files.diffusion_decoder, files.tokenizer)
    for path in (*places, files.upsampler):
        if path is not None:
            card = with_overrides(card, read_card_file(path))
    return card


def check_files(card: ModelCard, files: Files, *, averaged: bool = False) -> None:
    """CheckpointError unless the headers of all found files are those of this card.

    averaged: of the network, those of the moving average of its weights.
    """
    if card.tokens is not None:
        _check_tokens(card.network, card.tokens, files)
    elif files.weights is not None:
        network_rules(card.network, open_network(files.weights, averaged=averaged))
    if files.tokenizer is not None:
        _check_tokenizer(card, files.tokenizer)
    if files.text_encoder is not None:
        check_text_folder(files.text_encoder, text_dim=card.network.text_dim)
    if files.upsampler is not None:
        _check_upsampler(card, files.upsampler)
    if files.guardrail is not None:
        check_video_guard(files.guardrail)
        if files.text_guard is not None:
            check_text_guard(files.guardrail / WORD_LISTS, files.text_guard)


def _check_tokens(decoder: DiTShape, tokens: TokenModel, files: Files) -> None:
    """Of an autoregressive model: transformer, discrete tokenizer and diffusion decoder."""
    if files.weights is not None:
        token_rules(tokens.network, open_checkpoint(files.weights))
    if files.discrete_tokenizer is not None:
        DiscreteTokenizerStage(
            shape=tokens.tokenizer, folder=files.discrete_tokenizer, device=torch.device("cpu")
        ).check()
    if files.diffusion_decoder is not None:
        network_rules(decoder, open_network(files.diffusion_decoder))
        read_generic_text(files.diffusion_decoder, text_dim=decoder.text_dim)


def _check_tokenizer(card: ModelCard, folder: Path) -> None:
    """What looks at images needs the encoder too, and an interpolator the statistics of single images."""
    tokenizer = tokenizer_for(
        card.tokenizer,
        folder=folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        parts=PARTS if card.starts_from_frames else ("decoder",),
    )
    tokenizer.check()
    if card.task is not Task.WORLD_INTERPOLATOR or not isinstance(card.tokenizer, TokenizerShape):
        return
    if "image_mean_C" not in read_statistics(folder, card.tokenizer):
        raise CheckpointError(
            f"{folder} has no image_mean_std.pt: {card.name} encodes the last frame of a clip as an image. "
            f"Copy the file from {card.sources.tokenizer}, or download that again."
        )


def _check_upsampler(card: ModelCard, folder: Path) -> None:
    if card.network.family is Family.PREDICT2:
        check_refiner(folder)
    elif card.task is Task.TEXT2WORLD:
        check_upsampler(folder, card.upsampler)
    else:
        check_image_upsampler(folder, card.upsampler, card.vision)


def identities(files: Files) -> dict[str, dict[str, str]]:
    """Path and fingerprint of each. A NeMo checkpoint's is the same whichever of its folders was named."""
    return {
        name: {
            "path": str(path),
            "fingerprint": fingerprint(open_checkpoint(path).path if name == "weights" else path),
        }
        for name, path in files.found().items()
    }
