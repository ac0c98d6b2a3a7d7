"""The models of the released diffusion scripts, by family, size and type, and what each of them needs.

Standard library only. Sources: spec/predict1-diffusion.md, 9; spec/predict2-video2world.md, 6.1.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cosmos_nemo.checkpoint import autoregressive
from cosmos_nemo.checkpoint.released import (
    HubFiles,
    guardrail,
    lacking,
    network,
    prompt_upsampler,
    text_encoder,
    text_guard,
    video_tokenizer,
    wan_tokenizer,
)


class FamilyError(ValueError):
    """Sizes and types that no family has together."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """One family as it was released: `types` has the sizes in which each kind of model exists."""

    name: str
    prefix: str
    types: dict[str, tuple[str, ...]]
    default_types: tuple[str, ...]

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(size for sizes in self.types.values() for size in sizes))

    def model(self, size: str, kind: str) -> str:
        return f"{self.prefix}-{size}-{kind}"


_BOTH = ("7B", "14B")
PREDICT1 = Release(
    name="predict1",
    prefix="Cosmos-Predict1",
    types={
        "Text2World": _BOTH,
        "Video2World": _BOTH,
        "WorldInterpolator": ("7B",),
        "Text2World-Sample-AV-Multiview": ("7B",),
        "Video2World-Sample-AV-Multiview": ("7B",),
        "SingleToMultiView-Sample-AV": ("7B",),
    },
    default_types=("Text2World", "Video2World"),
)
PREDICT2 = Release(
    name="predict2",
    prefix="Cosmos-Predict2",
    types={"Text2Image": ("2B", "14B"), "Video2World": ("2B", "14B")},
    default_types=("Text2Image", "Video2World"),
)
FAMILIES = {family.name: family for family in (PREDICT1, PREDICT2)}
SIZES = tuple(dict.fromkeys(size for family in FAMILIES.values() for size in family.sizes))
TYPES = tuple(dict.fromkeys(kind for family in FAMILIES.values() for kind in family.types))
INFERENCE_RUNS = {
    "predict1": ("Text2World", "Video2World", "WorldInterpolator"),
    "predict2": ("Text2Image", "Video2World"),
}
"""The types that this package can run; what else is fetched waits for its pipeline."""


@dataclass(frozen=True, kw_only=True)
class FilesBeside(HubFiles):
    """Files of one repository that belong into the folder of another's, `host`."""

    host: HubFiles

    @property
    def assets_name(self) -> str:
        return self.host.assets_name


def image_upsampler(repository: str, *, model: str) -> HubFiles:
    """Pixtral, as Mistral released it, or as the released scripts converted that.

    Mistral's tokenizer (tekken.json) is not read: see `beside`.
    """
    return HubFiles(
        repository=repository,
        needs=(("params.json", "config.json"), ("consolidated.safetensors", "model.pt")),
        allow=("params.json", "consolidated.safetensors"),
        flag="--prompt_upsampler_dir",
        model=model,
    )


REFINERS = ("nvidia/Cosmos-Reason1-7B", "Qwen/Qwen2.5-VL-7B-Instruct")
"""Repositories with a model that can refine prompts; --prompt_upsampler_dir may name one of them."""


def prompt_refiner(repository: str, *, model: str) -> HubFiles:
    """A language model that reads the prompt and sees the picture."""
    return HubFiles(
        repository=repository,
        needs=(("config.json",), ("tokenizer.json",), ("*.safetensors",)),
        ignore=("*.md", ".gitattributes"),
        flag="--prompt_upsampler_dir",
        model=model,
    )


def beside(files: HubFiles) -> FilesBeside | None:
    """What of another repository belongs into the same folder: Pixtral's tokenizer, for transformers."""
    if files.repository != "mistralai/Pixtral-12B-2409":
        return None
    return FilesBeside(
        repository="mistral-community/pixtral-12b",
        needs=(("tokenizer.json",),),
        allow=("tokenizer.json",),
        flag=files.flag,
        model=files.model,
        host=files,
    )


def with_beside(files: HubFiles) -> list[HubFiles]:
    """`files`, and what belongs beside them: all that has to be fetched for their folder."""
    other = beside(files)
    return [files] if other is None else [files, other]


def lacking_together(files: HubFiles, names: Iterable[str]) -> str:
    """As released.lacking, of the files and of what belongs beside them."""
    there = list(names)
    if lacks := lacking(files, there):
        return lacks
    other = beside(files)
    lacks = lacking(other, there) if other is not None else ""
    return f"{lacks} (of {other.repository})" if lacks and other is not None else ""


def choose_family(name: str | None, sizes: Sequence[str] | None) -> Release:
    """The family called `name`, else the one that has `sizes`, else Predict1.

    FamilyError if the sizes fit none or (14B alone) fit both.
    """
    if name is not None:
        return FAMILIES[name]
    if not sizes:
        return PREDICT1
    marks = {size: [f for f in FAMILIES.values() if size in f.sizes] for size in sizes}
    sure = {found[0].name for found in marks.values() if len(found) == 1}
    given = " ".join(sizes)
    if len(sure) > 1:
        raise FamilyError(
            f"--model_sizes {given} mixes two families (7B is Predict1's, 2B is Predict2's). "
            "Run the command once for each."
        )
    if not sure:
        raise FamilyError(
            f"--model_sizes {given} is a size of Predict1 and of Predict2. Add --family predict1 or "
            "--family predict2."
        )
    return FAMILIES[sure.pop()]


def choose_models(
    family: Release, sizes: Sequence[str] | None, types: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(size, type) of each model; None stands for what the released scripts fetch unasked.

    FamilyError for a size or a type that was asked for and yields no model.
    """
    for flag, given, known in (
        ("--model_sizes", sizes, family.sizes),
        ("--model_types", types, family.types),
    ):
        for value in given or ():
            if value not in known:
                others = [f"--family {f.name}" for f in FAMILIES.values() if value in (*f.sizes, *f.types)]
                raise FamilyError(
                    f"{flag} {value} is not in --family {family.name}, which has {', '.join(known)}. "
                    f"It is in {' and '.join(others)}."
                )
    kinds = types or family.default_types
    models = [(size, kind) for size in sizes or family.sizes for kind in kinds if size in family.types[kind]]
    for kind in types or ():
        if kind not in {chosen for _, chosen in models}:
            raise FamilyError(
                f"--model_types {kind} exists in {', '.join(family.types[kind])} only, not in "
                f"--model_sizes {' '.join(sizes or ())}."
            )
    for size in sizes or ():
        if size not in {chosen for chosen, _ in models}:
            raise FamilyError(f"--model_sizes {size} has none of --model_types {' '.join(types or ())}.")
    return list(dict.fromkeys(models))


RESOLUTIONS, RATES = ("480", "720"), ("10", "16")
_VARIANT = re.compile(r"-(480|720)p-(10|16)fps$")
"""How the networks of one repository of Predict2 differ, at the end of their cards' names."""


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Networks of a Video2World of Predict2: for each of these rows of pixels, at each of these rates."""

    resolutions: tuple[str, ...] = ("720",)
    rates: tuple[str, ...] = ("16",)

    @property
    def file_names(self) -> list[str]:
        return [f"model-{rows}p-{rate}fps.pt" for rows in self.resolutions for rate in self.rates]


def choose_variants(
    family: Release,
    models: Sequence[tuple[str, str]],
    *,
    resolutions: Sequence[str] | None,
    rates: Sequence[str] | None,
) -> Variants:
    """What was asked for, else what the released script fetches; FamilyError where there is no choice."""
    for flag, given in (("--resolution", resolutions), ("--fps", rates)):
        if given and not (family is PREDICT2 and "Video2World" in {kind for _, kind in models}):
            raise FamilyError(f"{flag} is for Video2World of --family predict2 alone. Leave it out.")
    own = {"resolutions": resolutions, "rates": rates}
    return Variants(**{name: tuple(dict.fromkeys(given)) for name, given in own.items() if given})


def files_of(
    family: Release, models: Sequence[tuple[str, str]], variants: Variants = Variants()
) -> list[HubFiles]:
    """The repositories that `models` need, each once: the networks first, then what they share."""
    if family is PREDICT1 and ("7B", "Video2World") in models:
        models = [*models, ("7B", "WorldInterpolator")]
    kinds = {kind for _, kind in models}
    first = family.model(*models[0])
    networks = [_network(family, size, kind, variants) for size, kind in models]
    shared = [
        text_encoder("google-t5/t5-11b", model=first),
        guardrail("nvidia/Cosmos-Guardrail1", model=first),
        text_guard("meta-llama/Llama-Guard-3-8B", model=first),
    ]
    own = _predict1_extras(kinds, model=first) if family is PREDICT1 else _predict2_extras(kinds, model=first)
    return list({files.repository: files for files in (*networks, *own, *shared)}.values())


def door_for(model: str) -> str:
    """The command that downloads the model of this card's name; a post-trained one's is its base model's."""
    for size, name in autoregressive.MODELS.items():
        if name == model:
            return f"python download/autoregressive.py --model_sizes {size} --checkpoint_dir checkpoints"
    base = _VARIANT.sub("", model.partition("_post-trained")[0])
    found = _VARIANT.search(model)
    variant = f" --resolution {found[1]} --fps {found[2]}" if found else ""
    for family in FAMILIES.values():
        for kind, sizes in family.types.items():
            for size in sizes:
                if base == family.model(size, kind):
                    which = f" --family {family.name}" if size == "14B" else ""
                    return (
                        f"python download/diffusion.py --model_sizes {size}{which} --model_types {kind}"
                        f"{variant} --checkpoint_dir checkpoints"
                    )
    return f"python download/nemo.py --models {model}"


def _network(family: Release, size: str, kind: str, variants: Variants) -> HubFiles:
    model = family.model(size, kind)
    files = network(f"nvidia/{model}", model=model)
    if family is PREDICT2 and kind == "Video2World":
        own = variants.file_names
        if variants == Variants():
            return one_of(files, ("model.pt", *own))  # before the release and since
        return replace(files, needs=tuple((name,) for name in own), allow=(*own, "config.json"))
    if kind == "SingleToMultiView-Sample-AV":
        names = ("t2w_model.pt", "v2w_model.pt")
        return replace(files, needs=((names[0],), (names[1],)), allow=(*names, "config.json"))
    return files


def one_of(files: HubFiles, names: tuple[str, ...]) -> HubFiles:
    """Of a repository with several networks, the one whose file has any of these names."""
    return replace(files, needs=(names,), allow=(*names, "config.json"))


def _predict1_extras(kinds: set[str], *, model: str) -> list[HubFiles]:
    extras = [video_tokenizer("nvidia/Cosmos-Tokenize1-CV8x8x8-720p", model=model)]
    if "Text2World" in kinds:
        extras.append(prompt_upsampler("nvidia/Cosmos-UpsamplePrompt1-12B-Text2World", model=model))
    if kinds & {"Video2World", "WorldInterpolator"}:
        extras += with_beside(image_upsampler("mistralai/Pixtral-12B-2409", model=model))
    return extras


def _predict2_extras(kinds: set[str], *, model: str) -> list[HubFiles]:
    extras = [wan_tokenizer("Wan-AI/Wan2.1-T2V-1.3B", model=model)]
    if "Video2World" in kinds:
        extras.append(prompt_refiner(REFINERS[0], model=model))
    return extras
