"""Where a model's files are: where a flag says, in an assets folder, in the package, or on the hub."""

import logging
from pathlib import Path

from cosmos_nemo.catalog import Family, ModelCard, Task, WanTokenizerShape
from cosmos_nemo.checkpoint import families, hub, released
from cosmos_nemo.checkpoint.families import beside, door_for, lacking_together, with_beside
from cosmos_nemo.checkpoint.released import HubFiles

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "assets"
"""The assets folder that ships with the package."""

_NANO = "Cosmos-Nano-"
_OWN_WEIGHTS, _NATTEN = "_post-trained", "-natten.pt"
_GUARDS = ("--guardrail_dir", "--text_guard_dir")


class LocateError(ValueError):
    """Files that are nowhere to be found; the message names the flag and the way to get them."""


def weights_of(card: ModelCard) -> HubFiles:
    """The network's checkpoint; of a repository with several networks, the card's own file."""
    sources = card.sources
    files = released.network(sources.weights, folder=sources.weights_folder, model=card.name)
    return families.one_of(files, sources.weights_files) if sources.weights_files else files


def network_in(place: Path, card: ModelCard) -> Path:
    """The card's own file in a folder that may hold several networks, else `place` itself.

    LocateError if the folder holds other networks of the repository, and not this one.
    """
    if place.name.endswith(_NATTEN):
        raise LocateError(
            f"{place} is for sparse attention (NATTEN), which is not built: without it its videos are wrong. "
            f"Pass the file without {_NATTEN.partition('.')[0]} in its name."
        )
    names = card.sources.weights_files
    if not names or not place.is_dir():
        return place
    found = next((place / name for name in names if (place / name).is_file()), None)
    if found is not None:
        return found
    others = sorted(path.name for path in place.glob("model*.pt"))
    if others:
        usable = any(not name.endswith(_NATTEN) for name in others)
        or_that = f"pass the path of a file with {weights_of(card).flag}, or " if usable else ""
        raise LocateError(
            f"{place} holds {', '.join(others)}, but {card.name} is {' or '.join(names)}: {or_that}download "
            f"that one ({door_for(card.name)})."
        )
    return place


def tokenizer_of(card: ModelCard) -> HubFiles:
    """The video tokenizer and its statistics."""
    if isinstance(card.tokenizer, WanTokenizerShape):
        return released.wan_tokenizer(card.sources.tokenizer, model=card.name)
    return released.video_tokenizer(card.sources.tokenizer, model=card.name)


def discrete_tokenizer_of(card: ModelCard) -> HubFiles:
    """Of an autoregressive model: what makes ids of frames."""
    return released.discrete_tokenizer(card.sources.discrete_tokenizer, model=card.name)


def diffusion_decoder_of(card: ModelCard) -> HubFiles:
    """Of an autoregressive model: the network that makes latents of ids."""
    return released.diffusion_decoder(card.sources.diffusion_decoder, model=card.name)


def text_encoder_of(card: ModelCard) -> HubFiles:
    """The T5 folder."""
    return released.text_encoder(card.sources.text_encoder, model=card.name)


def upsampler_of(card: ModelCard, given: Path | None = None) -> HubFiles:
    """The prompt upsampler and its tokenizer: one that looks at images for every task but Text2World.

    given: what a person named; of Predict2's it may be the repository of another model that serves.
    """
    if card.network.family is Family.PREDICT2:
        name = given.as_posix() if given is not None else ""
        repository = name if name in families.REFINERS else card.sources.upsampler
        return families.prompt_refiner(repository, model=card.name)
    if card.task is Task.TEXT2WORLD:
        return released.prompt_upsampler(card.sources.upsampler, model=card.name)
    return families.image_upsampler(card.sources.upsampler, model=card.name)


def guardrail_of(card: ModelCard) -> HubFiles:
    """The word lists, the video content filter and the face detector."""
    return released.guardrail(card.sources.guardrail, model=card.name)


def text_guard_of(card: ModelCard) -> HubFiles:
    """Llama Guard."""
    return released.text_guard(card.sources.text_guard, model=card.name)


def downloads_of(card: ModelCard) -> list[HubFiles]:
    """Every repository that the model needs, with its upsampler and guardrails if it has them."""
    sources = card.sources
    parts = [weights_of(card)]
    if sources.tokenizer:
        parts.append(tokenizer_of(card))
    if card.tokens is not None:
        parts.append(discrete_tokenizer_of(card))
    if card.has_diffusion_decoder:
        parts.append(diffusion_decoder_of(card))
    if sources.text_encoder:
        parts.append(text_encoder_of(card))
    if sources.upsampler:
        parts += with_beside(upsampler_of(card))
    if sources.guardrail:
        parts.append(guardrail_of(card))
    if sources.text_guard:
        parts.append(text_guard_of(card))
    return parts


def locate(
    files: HubFiles,
    *,
    given: Path | None = None,
    assets_dir: Path | None = None,
    embedded: Path = EMBEDDED,
    cache_dir: Path | None = None,
    download: bool = True,
) -> Path | None:
    """The folder (or the file, if `given` is one) that holds `files`; None if only a download would help.

    Looks at `given` (inside assets_dir if it exists there, as upstream joins them), assets_dir, `embedded`,
    the Hugging Face cache (cache_dir, by default HF_HOME's) and, with `download`, the hub, in this order.
    LocateError if all fail, or if `given` or assets_dir does not exist; but where there is no folder of the
    documented name, `given` may be that name.
    """
    if given is not None:
        place = _existing(given, assets_dir=assets_dir)
        if place is not None:
            return place
        if not files.assets_name or given != Path(files.assets_name):
            raise LocateError(_is_missing(files, given=given, assets_dir=assets_dir))
    if assets_dir is not None and not assets_dir.is_dir():
        raise LocateError(
            f"--cosmos_assets_dir {assets_dir} is no folder: pass an existing one or leave it out."
        )
    for assets in (assets_dir, embedded):
        folder = assets / files.assets_name / files.subfolder if assets is not None else None
        if folder is not None and folder.is_dir():
            _refuse_unfinished(files, folder)
            return folder
    return _from_hub(files, assets_dir=assets_dir, cache_dir=cache_dir, download=download)


def _places(given: Path, *, assets_dir: Path | None) -> list[Path]:
    return [given] if assets_dir is None else [assets_dir / given, given]


def _existing(given: Path, *, assets_dir: Path | None) -> Path | None:
    return next((place for place in _places(given, assets_dir=assets_dir) if place.exists()), None)


def _is_missing(files: HubFiles, *, given: Path, assets_dir: Path | None) -> str:
    looked = " and ".join(dict.fromkeys(str(place) for place in _places(given, assets_dir=assets_dir)))
    if files.is_released:
        otherwise = f"or leave the flag out to use {files.repository}"
    else:
        otherwise = "or leave the flag out"
    return f"{files.flag} {given} does not exist (looked at {looked}): pass an existing path, {otherwise}."


def _refuse_unfinished(files: HubFiles, folder: Path) -> None:
    """A stopped download leaves its folder behind: what it lacks is better said here than by the reader."""
    if hub.unfinished_files(folder) and (lacks := lacking_together(files, hub.names_in(folder))):
        raise LocateError(
            f"{folder} was not downloaded to the end: there is no {lacks} yet. Run the download again; it "
            f"goes on where it stopped ({door_for(files.model)})."
        )


def _from_hub(
    files: HubFiles, *, assets_dir: Path | None, cache_dir: Path | None, download: bool
) -> Path | None:
    cached = hub.cached(files, cache_dir=cache_dir)
    if cached is None and download:
        cached = hub.put_together(files, cache_dir=cache_dir)
    may_fetch = files.is_released and not hub.is_offline()
    unfinished = cached is not None and hub.is_unfinished(files, cache_dir=cache_dir)
    if not download:
        return None if unfinished and may_fetch else cached
    if cached is not None and not (unfinished and may_fetch):
        return cached
    if not files.is_released:
        raise LocateError(_not_on_the_hub(files, assets_dir=assets_dir))
    try:
        return hub.fetch_to_cache(files, cache_dir=cache_dir)
    except hub.HubError as error:
        if cached is None:
            raise LocateError(f"{error}. {files.model} needs it: {_ways_out(files)}.") from error
        logger.warning("%s was not downloaded to the end (%s): using what is there", files.repository, error)
        return cached


def _not_on_the_hub(files: HubFiles, *, assets_dir: Path | None) -> str:
    if _OWN_WEIGHTS in files.assets_name:
        place = (assets_dir or Path("checkpoints")) / files.assets_name
        also = "" if assets_dir else " and pass --cosmos_assets_dir checkpoints"
        return (
            f"{files.model} is the name for weights of your own, and there are none: put model.pt or the "
            f"NeMo folder at {place}{also}, or pass its path with {files.flag}."
        )
    trained = (
        "train it on a GPU with `cosmos-nemo make-nano DIR` and pass --cosmos_assets_dir DIR/assets, "
        if files.model.startswith(_NANO)
        else ""
    )
    return (
        f"{files.repository} is not on the hub, and this installation of the package lacks it: {trained}"
        f"write a stand-in (random weights) with `cosmos-nemo standin {files.model} DIR` and pass "
        f"--cosmos_assets_dir DIR, or a folder of your own with {files.flag}."
    )


def _ways_out(files: HubFiles) -> str:
    without = ", or --disable_guardrail to do without" if files.flag in _GUARDS else ""
    other = beside(files)
    complete = f", with {other.needs[0][0]} of {other.repository} in its folder," if other is not None else ""
    command = door_for(files.model)
    if files.repository in families.REFINERS[1:]:  # not what the models come with
        command = f"hf download {files.repository} --local-dir checkpoints/{files.repository}"
    return (
        f"run `{command}` where there is a network, or pass a local copy{complete} with "
        f"{files.flag} or --cosmos_assets_dir{without}"
    )
