import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.families import (
    FAMILIES,
    INFERENCE_RUNS,
    PREDICT1,
    PREDICT2,
    SIZES,
    FamilyError,
    FilesBeside,
    Release,
    beside,
    choose_family,
    choose_models,
    choose_variants,
    door_for,
    files_of,
    image_upsampler,
    lacking_together,
    with_beside,
)
from cosmos_nemo.checkpoint.locate import downloads_of
from cosmos_nemo.checkpoint.released import text_encoder, wanted

PIXTRAL = image_upsampler("mistralai/Pixtral-12B-2409", model="m")
SHARED = {"google-t5/t5-11b", "nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"}


def repositories(family: Release, sizes: list[str], types: list[str]) -> set[str]:
    return {files.repository for files in files_of(family, choose_models(family, sizes, types))}


@pytest.mark.parametrize(
    ("name", "sizes", "family"),
    [
        (None, None, PREDICT1),
        (None, ["7B"], PREDICT1),
        (None, ["14B", "7B"], PREDICT1),
        (None, ["2B"], PREDICT2),
        (None, ["2B", "14B"], PREDICT2),
        ("predict1", ["14B"], PREDICT1),
        ("predict2", ["14B"], PREDICT2),
        ("predict2", None, PREDICT2),
    ],
)
def test_the_sizes_tell_the_family_unless_it_is_named(
    name: str | None, sizes: list[str] | None, family: Release
) -> None:
    assert choose_family(name, sizes) is family


@pytest.mark.parametrize(("sizes", "says"), [(["14B"], "Add --family"), (["7B", "2B"], "mixes two")])
def test_sizes_that_fit_both_families_or_none_are_refused(sizes: list[str], says: str) -> None:
    with pytest.raises(FamilyError, match=says):
        choose_family(None, sizes)


@pytest.mark.parametrize("name", [None, *FAMILIES])
@pytest.mark.parametrize("sizes", [None, ["2B"], ["7B"], ["14B"], ["7B", "14B"], ["2B", "14B"], list(SIZES)])
@pytest.mark.parametrize("kind", [None, *PREDICT1.types, *PREDICT2.types])
def test_every_combination_of_flags_yields_models_of_one_family_or_a_sentence(
    name: str | None, sizes: list[str] | None, kind: str | None
) -> None:
    try:
        family = choose_family(name, sizes)
        models = choose_models(family, sizes, [kind] if kind else None)
    except FamilyError as error:
        assert str(error).startswith("--model_") and str(error).endswith(".")
        return
    assert models and {size for size, _ in models} <= set(sizes or family.sizes)
    assert all(size in family.types[found] for size, found in models)
    assert sizes is None or {size for size, _ in models} == set(sizes)
    assert kind is None or {found for _, found in models} == {kind}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_model_of_a_family_can_be_asked_for_alone(family: Release) -> None:
    for kind, sizes in family.types.items():
        for size in sizes:
            files = files_of(family, choose_models(family, [size], [kind]))
            assert files[0].repository == f"nvidia/{family.model(size, kind)}"
            assert {one.repository for one in files} > SHARED
            alone = [one for one in files if not isinstance(one, FilesBeside)]
            assert len({one.assets_name for one in alone}) == len(alone)


def test_without_sizes_and_types_the_released_scripts_defaults_are_fetched() -> None:
    assert choose_models(PREDICT1, None, None) == [
        *(("7B", "Text2World"), ("7B", "Video2World"), ("14B", "Text2World"), ("14B", "Video2World")),
    ]
    assert choose_models(PREDICT2, None, None) == [
        *(("2B", "Text2Image"), ("2B", "Video2World"), ("14B", "Text2Image"), ("14B", "Video2World")),
    ]


def test_a_type_of_one_size_needs_no_size() -> None:
    assert choose_models(PREDICT1, None, ["WorldInterpolator"]) == [("7B", "WorldInterpolator")]


def test_a_model_that_is_asked_for_twice_is_fetched_once() -> None:
    assert choose_models(PREDICT1, ["7B", "7B"], ["Text2World"]) == [("7B", "Text2World")]


def test_the_7b_video2world_brings_the_interpolator() -> None:
    interpolator = "nvidia/Cosmos-Predict1-7B-WorldInterpolator"
    assert interpolator in repositories(PREDICT1, ["7B"], ["Video2World"])
    assert interpolator not in repositories(PREDICT1, ["14B"], ["Video2World"])
    assert interpolator not in repositories(PREDICT1, ["7B"], ["Text2World"])


def test_each_type_brings_its_own_upsampler() -> None:
    text, video = "nvidia/Cosmos-UpsamplePrompt1-12B-Text2World", "mistralai/Pixtral-12B-2409"
    assert {text, video} & repositories(PREDICT1, ["7B"], ["Text2World"]) == {text}
    assert {text, video} & repositories(PREDICT1, ["7B"], ["WorldInterpolator"]) == {video}
    assert {text, video} <= repositories(PREDICT1, ["7B"], ["Text2World", "Video2World"])
    reason = "nvidia/Cosmos-Reason1-7B"
    assert reason in repositories(PREDICT2, ["2B"], ["Video2World"])
    assert reason not in repositories(PREDICT2, ["2B"], ["Text2Image"])


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *((size, kind) for size in ("7B", "14B") for kind in ("Text2World", "Video2World")),
        ("7B", "WorldInterpolator"),
    ],
)
def test_what_is_fetched_for_a_card_is_what_inference_looks_for(size: str, kind: str) -> None:
    card = CARDS[f"Cosmos-Predict1-{size}-{kind}"]
    fetched = files_of(PREDICT1, choose_models(PREDICT1, [size], [kind]))
    found = {files.repository: files for files in fetched}
    if (size, kind) == ("7B", "Video2World"):
        del found["nvidia/Cosmos-Predict1-7B-WorldInterpolator"]
    assert found == {files.repository: files for files in downloads_of(card)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_door_of_every_model_is_a_command_that_fetches_it(family: Release) -> None:
    for kind, sizes in family.types.items():
        for size in sizes:
            words = door_for(family.model(size, kind)).split()
            assert words[:2] == ["python", "download/diffusion.py"]
            flags = dict(zip(words[2::2], words[3::2], strict=True))
            chosen = choose_family(flags.get("--family"), [flags["--model_sizes"]])
            assert chosen is family
            assert choose_models(chosen, [flags["--model_sizes"]], [flags["--model_types"]]) == [(size, kind)]


def test_the_door_of_a_nemo_card_is_the_other_one() -> None:
    name = "Cosmos-1.0-Diffusion-7B-Text2World"
    assert door_for(name) == f"python download/nemo.py --models {name}"


def test_the_types_that_run_are_those_with_a_card() -> None:
    for name, family in FAMILIES.items():
        with_card = {
            kind
            for kind, sizes in family.types.items()
            if any(family.model(size, kind) in CARDS for size in sizes)
        }
        assert with_card == set(INFERENCE_RUNS.get(name, ()))


def test_pixtrals_tokenizer_lies_beside_its_weights_though_another_repository_has_it() -> None:
    host, other = with_beside(PIXTRAL)
    assert host is PIXTRAL and other == beside(PIXTRAL) and isinstance(other, FilesBeside)
    assert (other.repository, other.assets_name) == ("mistral-community/pixtral-12b", "Pixtral-12B")
    assert (other.flag, other.model, other.host) == (PIXTRAL.flag, PIXTRAL.model, PIXTRAL)
    assert PIXTRAL.terms.accept and not other.terms.accept
    assert wanted(other, ["tokenizer.json", "model-00001-of-00006.safetensors", "config.json"]) == [
        "tokenizer.json"
    ]
    assert beside(other) is None and with_beside(text_encoder("google-t5/t5-11b", model="m"))[1:] == []


def test_pixtral_is_fetched_as_mistral_released_it_without_a_tokenizer_that_is_not_read() -> None:
    released = ["params.json", "consolidated.safetensors", "tekken.json", "README.md"]
    assert wanted(PIXTRAL, released) == released[:2]


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (("params.json", "consolidated.safetensors", "tokenizer.json"), ""),
        (("config.json", "model.pt", "tokenizer.json"), ""),  # as the released scripts leave it
        (("params.json", "consolidated.safetensors"), "tokenizer.json (of mistral-community/pixtral-12b)"),
        (("params.json", "tokenizer.json"), "consolidated.safetensors or model.pt"),
        (("tokenizer.json",), "params.json or config.json"),
    ],
)
def test_a_folder_is_whole_with_the_files_of_both_repositories(names: tuple[str, ...], lacks: str) -> None:
    assert lacking_together(PIXTRAL, iter(names)) == lacks


@pytest.mark.parametrize(
    ("resolutions", "rates", "names"),
    [
        (None, None, [("model.pt", "model-720p-16fps.pt")]),
        (["480"], None, [("model-480p-16fps.pt",)]),
        (["480", "720"], ["10"], [("model-480p-10fps.pt",), ("model-720p-10fps.pt",)]),
        (["720", "720"], ["16"], [("model.pt", "model-720p-16fps.pt")]),
    ],
)
def test_the_networks_of_a_video2world_of_predict2_are_those_asked_for(
    resolutions: list[str] | None, rates: list[str] | None, names: list[tuple[str, ...]]
) -> None:
    models = [("2B", "Video2World")]
    variants = choose_variants(PREDICT2, models, resolutions=resolutions, rates=rates)
    network = files_of(PREDICT2, models, variants)[0]
    assert list(network.needs) == names
    assert set(network.allow) == {"config.json", *(name for group in names for name in group)}


@pytest.mark.parametrize("flag", ["resolutions", "rates"])
@pytest.mark.parametrize(
    ("family", "models"), [(PREDICT1, [("7B", "Video2World")]), (PREDICT2, [("2B", "Text2Image")])]
)
def test_a_resolution_or_rate_is_refused_where_there_is_one_network(
    family: Release, models: list[tuple[str, str]], flag: str
) -> None:
    asked: dict[str, list[str] | None] = {"resolutions": None, "rates": None, flag: ["480"]}
    with pytest.raises(FamilyError, match="is for Video2World of --family predict2 alone"):
        choose_variants(family, models, **asked)


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("Cosmos-Predict2-2B-Video2World", "--model_sizes 2B --model_types Video2World --checkpoint_dir"),
        (
            "Cosmos-Predict2-14B-Video2World-480p-10fps",
            "--model_sizes 14B --family predict2 --model_types Video2World --resolution 480 --fps 10",
        ),
    ],
)
def test_the_command_that_downloads_a_network_of_predict2_names_its_variant(model: str, flags: str) -> None:
    assert f"python download/diffusion.py {flags}" in door_for(model)
