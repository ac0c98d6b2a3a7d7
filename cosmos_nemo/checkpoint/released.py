"""The released files as data: what is needed of each hub repository, its folder, sums and licence terms.

Standard library only. Sources: spec/predict1-diffusion.md, 7 and 9; spec/predict1-autoregressive.md, 8;
spec/predict2-video2world.md, 6.1 and 7.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from cosmos_nemo.catalog import NOT_ON_THE_HUB

_FOLDERS = {
    **{
        repository: repository
        for repository in (
            "google-t5/t5-11b",
            "meta-llama/Llama-Guard-3-8B",
            "nvidia/Cosmos-Guardrail1",
            "nvidia/Cosmos-Reason1-7B",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "Wan-AI/Wan2.1-T2V-1.3B",
        )
    },
    "mistralai/Pixtral-12B-2409": "Pixtral-12B",
}
"""Folders inside an assets folder that are not called as their repository is, without its owner."""

# The sum published for safety_filter.pt is that of the copies inside the models' own repositories, which are
# not fetched; none is published for nvidia/Cosmos-Guardrail1, nor for Predict2 as it is on the hub now.
_MD5 = {
    "nvidia/Cosmos-Predict1-7B-Text2World": {"model.pt": "fe9ed68e16cf37b10e7414c9b3ee81e1"},
    "nvidia/Cosmos-Predict1-14B-Text2World": {"model.pt": "c69d1c6e51dc78b959040e8c4035a29b"},
    "nvidia/Cosmos-Predict1-7B-Video2World": {"model.pt": "ebcdb19c4c4a6a0e1e0bb65e346f6867"},
    "nvidia/Cosmos-Predict1-14B-Video2World": {"model.pt": "eaa7aa3678f61d88108c41d7fe201b18"},
    "nvidia/Cosmos-Predict1-7B-WorldInterpolator": {"model.pt": "48a0bdc99d5e41eee05ba8597c4851da"},
    "nvidia/Cosmos-UpsamplePrompt1-12B-Text2World": {"model.pt": "52d7a6b8b1ac44d856b4c1ea3f8c8c74"},
    "nvidia/Cosmos-Tokenize1-CV8x8x8-720p": {
        "mean_std.pt": "f07680ad7eefae57d698778e2a0c7c96",
        "image_mean_std.pt": "9f19fd3312fc1198e4905ada02e68bce",
    },
    "nvidia/Cosmos-Predict1-4B": {"model.pt": "5fdc62fc87fbf470dbcc2288589b7942"},
    "nvidia/Cosmos-Predict1-5B-Video2World": {"model.pt": "2a48a854bb6e04abb6b7c72979f1a69b"},
    "nvidia/Cosmos-Predict1-12B": {"model.pt": "ed748fabcb544d30d35385a8c28efb4d"},
    "nvidia/Cosmos-Predict1-13B-Video2World": {"model.pt": "21a9fb02c61fbebc96c1af1fcaa5893f"},
    "nvidia/Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p": {
        "model.pt": "a30149cc3730f3142b01fd374b6076f8",
        "aux_vars.pt": "29e450d81839e82bb4bdbf12e43a74f1",
    },
    "nvidia/Cosmos-Tokenize1-DV8x16x16-720p": {
        "encoder.jit": "95186b0410346a3f0cf250b76daec452",
        "decoder.jit": "f0c8a9d992614a43e7ce24ebfc901e26",
    },
    "google-t5/t5-11b": {"pytorch_model.bin": "f890878d8a162e0045a25196e27089a3"},
    "Wan-AI/Wan2.1-T2V-1.3B": {"Wan2.1_VAE.pth": "854fcb755005951fa5b329799af6199f"},
}

_REVISIONS = {
    "nvidia/Cosmos-Predict2-2B-Video2World": "f50c09f5d8ab133a90cac3f4886a6471e9ba3f18",
    "nvidia/Cosmos-Predict2-14B-Video2World": "03b03a377fede782647afac998f674d9f358e319",
    "nvidia/Cosmos-Predict2-2B-Text2Image": "acdb5fde992a73ef0355f287977d002cbfd127e0",
    "nvidia/Cosmos-Predict2-14B-Text2Image": "015332720f70dd7b497c1cff9fd0c936a77f160b",
    "nvidia/Cosmos-Reason1-7B": "8fe96c1fa10db9e666b6fa6a87fea57dd9635649",
}
"""The commits that Predict2's own download script asks for."""

_OTHER_FORMATS = ("*.h5", "*.msgpack", "*.ot", "original/*", "*.md", ".gitattributes")
_TORCH_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The licence of a repository; `accept` if the hub sends files only to who accepted it on `page`."""

    name: str
    accept: bool
    page: str


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The files of one hub repository that one part of a model needs."""

    repository: str
    subfolder: str = ""
    needs: tuple[tuple[str, ...], ...]
    """Of each group, at least one pattern must match in the subfolder, or the copy is not complete."""
    allow: tuple[str, ...] = ()
    """Patterns of what is fetched; () is everything but `ignore`."""
    ignore: tuple[str, ...] = ()
    flag: str
    """The flag that names a local copy."""
    model: str
    """The model that needs them, by its card's name."""

    @property
    def is_released(self) -> bool:
        return not self.repository.startswith(f"{NOT_ON_THE_HUB}/")

    @property
    def assets_name(self) -> str:
        """The repository's folder inside an assets folder, as in the released scripts' checkpoints/."""
        return _FOLDERS.get(self.repository, self.repository.partition("/")[2])

    @property
    def hub_name(self) -> str:
        """The repository's folder inside a Hugging Face cache."""
        return "models--" + self.repository.replace("/", "--")

    @property
    def revision(self) -> str | None:
        """The commit to fetch; None for the newest."""
        return _REVISIONS.get(self.repository)

    @property
    def md5(self) -> dict[str, str]:
        """The published sums, by the file's path in the repository."""
        return _MD5.get(self.repository, {})

    @property
    def terms(self) -> Terms:
        name, accept = _licence(self.repository)
        return Terms(name=name, accept=accept, page=f"https://huggingface.co/{self.repository}")


def wanted(files: HubFiles, names: Iterable[str]) -> list[str]:
    """Those of a repository's paths that are fetched.

    PyTorch's pickles are left out of a folder that holds the same weights as safetensors.
    """
    chosen = [
        name
        for name in names
        if (not files.allow or _matches(name, files.allow)) and not _matches(name, files.ignore)
    ]
    twice = {PurePosixPath(name).parent for name in chosen if name.endswith(".safetensors")}
    return [name for name in chosen if not _is_pickle_in(name, twice)]


def lacking(files: HubFiles, names: Iterable[str]) -> str:
    """What is missing among the paths in the subfolder of a copy, "" if nothing."""
    paths = [PurePosixPath(name).parts for name in names]
    for group in files.needs:
        patterns = [PurePosixPath(pattern) for pattern in group]
        if not any(_begins(parts, pattern) for parts in paths for pattern in patterns):
            return f"{files.subfolder}/ folder" if files.subfolder else " or ".join(group)
    return ""


def network(repository: str, *, folder: str = "", model: str) -> HubFiles:
    """The network's checkpoint: its NeMo folder, or the files of one that lies at the repository's root."""
    return HubFiles(
        repository=repository,
        subfolder=folder,
        needs=(("*",),) if folder else (("model.pt",),),
        allow=(f"{folder}/*",) if folder else ("model.pt", "config.json"),
        flag="--nemo_checkpoint",
        model=model,
    )


def video_tokenizer(repository: str, *, model: str) -> HubFiles:
    """The video tokenizer and its statistics, without the archive that holds both halves again."""
    return HubFiles(
        repository=repository,
        needs=(("decoder.jit", "*.safetensors"), ("mean_std.pt",)),
        allow=("encoder.jit", "decoder.jit", "*.safetensors", "mean_std.pt", "image_mean_std.pt"),
        flag="--tokenizer_dir",
        model=model,
    )


def discrete_tokenizer(repository: str, *, model: str) -> HubFiles:
    """The tokenizer that makes ids of videos, without the archive that holds both halves again."""
    names = ("encoder.jit", "decoder.jit")
    return HubFiles(
        repository=repository,
        needs=tuple((name,) for name in names),
        allow=names,
        flag="--discrete_tokenizer_dir",
        model=model,
    )


def diffusion_decoder(repository: str, *, model: str) -> HubFiles:
    """The network that makes latents of ids, and the embedding of its one prompt."""
    names = ("model.pt", "aux_vars.pt")
    return HubFiles(
        repository=repository,
        needs=tuple((name,) for name in names),
        allow=(*names, "config.json"),
        flag="--diffusion_decoder_dir",
        model=model,
    )


def wan_tokenizer(repository: str, *, model: str) -> HubFiles:
    """Wan2.1's video tokenizer, which lies beside networks that are not needed."""
    names = ("tokenizer.pth", "Wan2.1_VAE.pth")
    needs = (*names, "diffusion_pytorch_model.safetensors")
    return HubFiles(repository=repository, needs=(needs,), allow=names, flag="--tokenizer_dir", model=model)


def text_encoder(repository: str, *, model: str) -> HubFiles:
    """The T5 folder, without the copies of its weights for other frameworks."""
    return HubFiles(
        repository=repository,
        needs=(("config.json",), ("tokenizer.json",), ("*.safetensors", "*.bin")),
        ignore=_OTHER_FORMATS,
        flag="--text_encoder_dir",
        model=model,
    )


def prompt_upsampler(repository: str, *, model: str) -> HubFiles:
    """The prompt upsampler and its tokenizer, without the guardrails that lie beside it."""
    return HubFiles(
        repository=repository,
        needs=(("model.pt", "*.safetensors"), ("tokenizer.json",)),
        ignore=("guardrail/*", *_OTHER_FORMATS),
        flag="--prompt_upsampler_dir",
        model=model,
    )


def guardrail(repository: str, *, model: str) -> HubFiles:
    """The word lists, the video content filter and the face detector."""
    parts = ("blocklist", "video_content_safety_filter", "face_blur_filter")
    return HubFiles(
        repository=repository,
        needs=tuple((part,) for part in parts),
        allow=tuple(f"{part}/*" for part in parts),
        flag="--guardrail_dir",
        model=model,
    )


def text_guard(repository: str, *, model: str) -> HubFiles:
    """Llama Guard, without the copy of its weights in Meta's own format."""
    return HubFiles(
        repository=repository,
        needs=(("config.json",), ("tokenizer.json",), ("*.safetensors", "*.bin")),
        ignore=_OTHER_FORMATS,
        flag="--text_guard_dir",
        model=model,
    )


def _licence(repository: str) -> tuple[str, bool]:
    """Its name, and whether the hub asks to accept it (or to leave contact details) first."""
    owner = repository.partition("/")[0]
    return {
        "nvidia": ("NVIDIA Open Model License", True),
        "meta-llama": ("Llama 3.1 Community License", True),
        "mistralai": ("Apache 2.0, after contact details", True),
    }.get(owner, ("Apache 2.0", False))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_pickle_in(name: str, folders: set[PurePosixPath]) -> bool:
    path = PurePosixPath(name)
    return path.parent in folders and _matches(path.name, _TORCH_WEIGHTS)


def _begins(parts: tuple[str, ...], pattern: PurePosixPath) -> bool:
    """A pattern may name a file or a folder above it."""
    length = len(pattern.parts)
    return len(parts) >= length and PurePosixPath(*parts[:length]).match(str(pattern))
