"""Where a model's files are: where a flag says, in an assets folder, in the package, or on the hub."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cosmos_nemo.catalog import NOT_ON_THE_HUB, ModelCard

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "assets"
"""The assets folder that ships with the package."""


_WITH_OWNER = ("google-t5/t5-11b", "meta-llama/Llama-Guard-3-8B", "nvidia/Cosmos-Guardrail1")
"""Repositories whose folder in an assets folder keeps its owner's name (spec/predict1-diffusion.md, 9)."""


class LocateError(ValueError):
    """Files that are nowhere to be found; the message names the flag and the way to get them."""


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The files of one hub repository that one part of a model needs."""

    repository: str
    subfolder: str = ""
    needs: tuple[tuple[str, ...], ...]
    """Of each group, at least one pattern must match in the subfolder, or the copy is not complete."""
    ignore: tuple[str, ...] = ()
    flag: str
    """The flag that names a local copy."""
    model: str
    """The card, as the download door's --models takes it."""

    @property
    def allow(self) -> tuple[str, ...] | None:
        """Patterns of what is fetched; None is everything but `ignore`."""
        return (f"{self.subfolder}/*",) if self.subfolder else None

    @property
    def is_released(self) -> bool:
        return not self.repository.startswith(f"{NOT_ON_THE_HUB}/")

    @property
    def assets_name(self) -> str:
        """The repository's folder inside an assets folder, as in the released scripts' checkpoints/."""
        if self.repository in _WITH_OWNER:
            return self.repository
        return self.repository.partition("/")[2]

    @property
    def hub_name(self) -> str:
        """The repository's folder inside a Hugging Face cache."""
        return "models--" + self.repository.replace("/", "--")


def weights_of(card: ModelCard) -> HubFiles:
    """The network's checkpoint."""
    return HubFiles(
        repository=card.sources.weights,
        subfolder=card.sources.weights_folder,
        needs=(("*",),),
        flag="--nemo_checkpoint",
        model=card.name,
    )


def tokenizer_of(card: ModelCard) -> HubFiles:
    """The video tokenizer and its statistics."""
    return HubFiles(
        repository=card.sources.tokenizer,
        needs=(("decoder.jit", "*.safetensors"), ("mean_std.pt",)),
        flag="--tokenizer_dir",
        model=card.name,
    )


def text_encoder_of(card: ModelCard) -> HubFiles:
    """The T5 folder, without the copies of its weights for other frameworks."""
    return HubFiles(
        repository=card.sources.text_encoder,
        needs=(("config.json",), ("tokenizer.json",), ("*.safetensors", "*.bin")),
        ignore=("*.h5", "*.msgpack"),
        flag="--text_encoder_dir",
        model=card.name,
    )


def upsampler_of(card: ModelCard) -> HubFiles:
    """The prompt upsampler and its tokenizer."""
    return HubFiles(
        repository=card.sources.upsampler,
        needs=(("model.pt", "*.safetensors"), ("tokenizer.json",)),
        flag="--prompt_upsampler_dir",
        model=card.name,
    )


def guardrail_of(card: ModelCard) -> HubFiles:
    """The word lists, the video content filter and the face detector."""
    return HubFiles(
        repository=card.sources.guardrail,
        needs=(("blocklist",), ("video_content_safety_filter",), ("face_blur_filter",)),
        flag="--guardrail_dir",
        model=card.name,
    )


def text_guard_of(card: ModelCard) -> HubFiles:
    """Llama Guard, without the copy of its weights in Meta's own format."""
    return HubFiles(
        repository=card.sources.text_guard,
        needs=(("config.json",), ("tokenizer.json",), ("*.safetensors", "*.bin")),
        ignore=("original/*",),
        flag="--text_guard_dir",
        model=card.name,
    )


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
    LocateError if all fail, or if `given` or assets_dir does not exist.
    """
    if given is not None:
        return _given(files, given=given, assets_dir=assets_dir)
    if assets_dir is not None and not assets_dir.is_dir():
        raise LocateError(
            f"--cosmos_assets_dir {assets_dir} is no folder: pass an existing one or leave it out."
        )
    for assets in (assets_dir, embedded):
        folder = assets / files.assets_name / files.subfolder if assets is not None else None
        if folder is not None and folder.is_dir():
            return folder
    return _from_hub(files, cache_dir=cache_dir, download=download)


def fetch(files: HubFiles, *, cache_dir: Path | None = None) -> Path:
    """Downloads what the Hugging Face cache lacks of `files`; their folder. LocateError if it cannot."""
    from huggingface_hub import constants, snapshot_download

    if not files.is_released:
        raise LocateError(
            f"{files.repository} is not on the hub: write a stand-in with "
            f"`cosmos-nemo standin {files.model} DIR` and pass --cosmos_assets_dir DIR, or a folder of your "
            f"own with {files.flag}."
        )
    if constants.HF_HUB_OFFLINE:
        raise LocateError(
            f"{_missing(files)}, and HF_HUB_OFFLINE forbids to download it: {_ways_out(files)}."
        )
    try:
        snapshot = snapshot_download(
            files.repository,
            allow_patterns=list(files.allow) if files.allow else None,
            ignore_patterns=list(files.ignore),
            cache_dir=cache_dir,
        )
    except Exception as error:  # the hub's client raises whatever its HTTP library of the day raises
        raise LocateError(_why_not(files, error)) from error
    folder = Path(snapshot) / files.subfolder
    if lacks := _lacks(files, folder):
        raise LocateError(
            f"{files.repository} on the hub has no {lacks}: pass a local copy with {files.flag}."
        )
    return folder


def _given(files: HubFiles, *, given: Path, assets_dir: Path | None) -> Path:
    places = [given] if assets_dir is None else [assets_dir / given, given]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    raise LocateError(
        f"{files.flag} {given} does not exist (looked at {looked}): pass an existing path, or leave the flag "
        f"out to use {files.repository}."
    )


def _from_hub(files: HubFiles, *, cache_dir: Path | None, download: bool) -> Path | None:
    from huggingface_hub import constants

    cached = _cached(files, cache_dir=cache_dir)
    may_fetch = files.is_released and not constants.HF_HUB_OFFLINE
    unfinished = cached is not None and _was_interrupted(cached.parent if files.subfolder else cached)
    if not download:
        return None if unfinished and may_fetch else cached
    if cached is None:
        return fetch(files, cache_dir=cache_dir)
    if not (unfinished and may_fetch):
        return cached
    try:
        return fetch(files, cache_dir=cache_dir)
    except LocateError as error:
        logger.warning("%s was not downloaded to the end (%s): using what is there", files.repository, error)
        return cached


def _cached(files: HubFiles, *, cache_dir: Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            files.repository,
            allow_patterns=list(files.allow) if files.allow else None,
            ignore_patterns=list(files.ignore),
            cache_dir=cache_dir,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(snapshot) / files.subfolder
    return None if _lacks(files, folder) else folder


def _was_interrupted(snapshot: Path) -> bool:
    """A download that was stopped leaves unfinished blobs; the snapshot beside them looks complete."""
    return any((snapshot.parents[1] / "blobs").glob("*.incomplete"))


def _lacks(files: HubFiles, folder: Path) -> str:
    """What the folder is missing, "" if nothing."""
    for group in files.needs:
        if not any(True for pattern in group for _ in folder.glob(pattern)):
            return f"{files.subfolder}/ folder" if files.subfolder else " or ".join(group)
    return ""


def _missing(files: HubFiles) -> str:
    what = f"{files.repository} ({files.subfolder}/)" if files.subfolder else files.repository
    return f"{what}, needed by {files.model}, is not complete in the Hugging Face cache (HF_HOME)"


def _ways_out(files: HubFiles) -> str:
    return (
        f"run `python download/diffusion_nemo.py --models {files.model}` where there is a network, or pass "
        f"a local copy with {files.flag} or --cosmos_assets_dir"
    )


def _why_not(files: HubFiles, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    page = f"https://huggingface.co/{files.repository}"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, GatedRepoError) or (isinstance(error, HfHubHTTPError) and status in (401, 403)):
        return (
            f"{files.repository} may not be downloaded without leave (HTTP {status}): accept its licence "
            f"at {page} and set HF_TOKEN to a token of that account, then {_ways_out(files)}."
        )
    reason = str(error.__cause__ or error).splitlines()[0] if str(error) else type(error).__name__
    return f"{_missing(files)} and cannot be downloaded ({reason}): {_ways_out(files)}."
