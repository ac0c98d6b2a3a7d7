import json
from dataclasses import replace

import pytest

from cosmos_nemo.catalog import (
    CARDS,
    CatalogError,
    Family,
    ModelCard,
    Task,
    find_card,
    overrides_of,
    variant_for,
    with_overrides,
)

SEVEN, FOURTEEN = (CARDS[f"Cosmos-1.0-Diffusion-{size}-Text2World"] for size in ("7B", "14B"))
INTERPOLATOR = CARDS["Cosmos-Predict1-7B-WorldInterpolator"]


def of_task(task: Task) -> list[ModelCard]:
    return [card for card in CARDS.values() if card.task is task]


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(CatalogError, match=r"Cosmos-1\.0-Diffusion-7B-Text2World"):
        find_card("Cosmos-1.0-Diffusion-7B-Text2Wrld")


def test_overrides_restore_a_card_through_json() -> None:
    changed = replace(SEVEN, network=replace(SEVEN.network, num_layers=2, rope_ratios_THW=(1.0, 2.0, 3.0)))
    fields = json.loads(json.dumps(overrides_of(changed, SEVEN)))
    assert fields == {"network": {"num_layers": 2, "rope_ratios_THW": [1.0, 2.0, 3.0]}}
    assert with_overrides(SEVEN, fields) == changed


def test_a_card_has_no_overrides_of_itself() -> None:
    assert overrides_of(FOURTEEN, FOURTEEN) == {}
    assert with_overrides(FOURTEEN, {}) == FOURTEEN


@pytest.mark.parametrize("fields", [{"layers": 3}, {"network": {"num_layer": 3}}])
def test_an_unknown_field_of_card_json_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CatalogError, match="is no field"):
        with_overrides(SEVEN, fields)


@pytest.mark.parametrize(
    "sources",
    [{"guardrail": ""}, {"text_guard": ""}, {"weights": "someone/else"}, {}, None],
    ids=lambda sources: str(sources),
)
def test_a_card_json_may_not_say_where_files_come_from_nor_drop_the_guardrails(sources: object) -> None:
    with pytest.raises(CatalogError, match="sources cannot be changed") as caught:
        with_overrides(SEVEN, {"num_steps": 5, "sources": sources})
    assert "the doors' flags" in str(caught.value)


@pytest.mark.parametrize(("card", "width"), [(SEVEN, 4096), (FOURTEEN, 5120)])
def test_released_heads_are_128_wide_and_patches_hold_68_values(card: object, width: int) -> None:
    network = card.network  # type: ignore[attr-defined]
    assert (network.hidden_size, network.head_dim, network.patch_dim) == (width, 128, 68)


@pytest.mark.parametrize(
    "fields",
    [
        {"network": 5},
        {"network": {"num_layers": "4"}},
        {"network": {"num_heads": 0}},
        {"network": {"patch_size": -2}},
        {"network": {"num_layers": 2.5}},
        {"network": {"num_layers": True}},
        {"network": {"takes_given_mask": 1}},
        {"network": {"rope_ratios_THW": 2.0}},
        {"network": {"rope_ratios_THW": ["a"]}},
        {"task": "text2wrld"},
        {"sampler": 3},
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(fields: dict[str, object]) -> None:
    with pytest.raises(CatalogError, match=r"card\.json: .* cannot be"):
        with_overrides(SEVEN, fields)


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    assert with_overrides(SEVEN, {"guidance": 5}).guidance == 5.0


def test_the_names_of_predict1_are_those_of_the_released_scripts() -> None:
    own = ("", "-4gpu_80gb", "-8gpu_40gb", "-4gpu_40gb", "-lora")
    for kind in ("Text2World", "Video2World"):
        assert {name for name in CARDS if name.startswith("Cosmos-Predict1") and kind in name} == {
            *(f"Cosmos-Predict1-{size}-{kind}" for size in ("7B", "14B")),
            *(f"Cosmos-Predict1-7B-{kind}_post-trained{how}" for how in own),
            f"Cosmos-Predict1-14B-{kind}_post-trained",
        }
    assert {card.name for card in of_task(Task.WORLD_INTERPOLATOR)} == {
        *(INTERPOLATOR.name, f"{INTERPOLATOR.name}_post-trained"),
        "Cosmos-Nano-WorldInterpolator",
    }


COSMOS1_VIDEO = [card for card in of_task(Task.VIDEO2WORLD) if card.network.family is Family.COSMOS1]
PREDICT2 = [card for card in of_task(Task.VIDEO2WORLD) if card.name.startswith("Cosmos-Predict2")]


@pytest.mark.parametrize(
    ("size", "width", "layers", "ratios"),
    [("2B", 2048, 28, (1.0, 3.0, 3.0)), ("14B", 5120, 36, (20 / 24, 2.0, 2.0))],
)
def test_the_networks_of_predict2_are_those_of_the_release(
    size: str, width: int, layers: int, ratios: tuple[float, float, float]
) -> None:
    cards = [card for card in PREDICT2 if f"-{size}-" in card.name]
    assert len(cards) == 5 and len({card.network for card in cards}) == 1
    network = cards[0].network
    assert (network.hidden_size, network.num_layers, network.head_dim) == (width, layers, 128)
    assert (network.patch_dim, network.rope_ratios_THW) == (72, ratios)
    assert {card.sources.weights for card in cards} == {f"nvidia/Cosmos-Predict2-{size}-Video2World"}
    assert {(card.sampler, card.guidance, card.num_steps, card.sigma_data) for card in cards} == {
        ("RES", 7.0, 35, 1.0)
    }


@pytest.mark.parametrize("card", of_task(Task.TEXT2IMAGE), ids=lambda card: card.name)
def test_a_text2image_is_the_network_of_its_video2world_without_given_frames(card: ModelCard) -> None:
    video = CARDS[card.name.replace("Text2Image", "Video2World")]
    assert card.network == replace(video.network, takes_given_mask=False, rope_ratios_THW=(1.0, 4.0, 4.0))
    assert card.network.patch_dim == 68
    assert (card.guidance, card.seed, card.num_steps, card.sigma_data) == (4.0, 0, 35, 1.0)
    assert (card.sampler, card.tokenizer) == (video.sampler, video.tokenizer)
    assert (card.video.width, card.video.height, card.video.num_frames) == (1360, 768, 1)
    assert card.latent_frames(1) == 1 and not card.starts_from_frames
    assert card.sources.weights == f"nvidia/{card.name}"
    assert replace(card.sources, weights="") == replace(
        video.sources, weights="", weights_files=(), upsampler=""
    )


@pytest.mark.parametrize("card", PREDICT2, ids=lambda card: card.name)
def test_a_network_of_predict2_makes_as_many_frames_as_its_rate_was_trained_on(card: ModelCard) -> None:
    assert (card.video.fps, card.video.num_frames) in ((10, 61), (16, 93))
    assert card.latent_frames(card.video.num_frames) == {10: 16, 16: 24}[card.video.fps]
    assert card.video.given_frames == (1, 5)
    assert [card.latent_frames(given) for given in card.video.given_frames] == [1, 2]
    assert (card.latent_frames(81), card.latent_frames(121)) == (21, 31)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ({"height": None, "width": None, "fps": None}, "-720p-16fps"),
        ({"height": 432, "width": 768, "fps": None}, "-480p-16fps"),
        ({"height": 480, "width": 640, "fps": 10}, "-480p-10fps"),
        ({"height": 960, "width": 704, "fps": 24}, "-720p-16fps"),
        ({"height": None, "width": None, "fps": 10}, "-720p-10fps"),
    ],
)
def test_the_network_nearest_to_size_and_rate_is_chosen(size: dict[str, int | None], wanted: str) -> None:
    name = "Cosmos-Predict2-2B-Video2World"
    assert variant_for(CARDS[name], **size).name == name + wanted
    named = CARDS[f"{name}-480p-10fps"]
    assert variant_for(named, **size) is named
    other = CARDS["Cosmos-Predict1-7B-Video2World"]
    assert variant_for(other, **size) is other


@pytest.mark.parametrize("card", COSMOS1_VIDEO, ids=lambda card: card.name)
def test_a_video2world_is_its_text2world_with_a_channel_and_an_upsampler_more(card: ModelCard) -> None:
    text = CARDS[card.name.replace("Video2World", "Text2World")]
    assert card.network == replace(text.network, takes_given_mask=True)
    assert card.network.patch_dim == 72
    assert (card.sampler, card.guidance, card.seed) == (text.sampler, text.guidance, text.seed)
    assert replace(card.video, max_frames=text.video.max_frames) == text.video
    assert card.video.max_frames == card.video.num_frames, "a chunk is as long as the training's videos"
    assert (card.upsampler.rope_theta, card.upsampler.max_length) == (1e9, 4700)
    assert card.sources.upsampler == ("mistralai/Pixtral-12B-2409" if text.sources.upsampler else "")
    assert card.sources.weights == text.sources.weights.replace("Text2World", "Video2World")
    assert replace(card.sources, weights="", upsampler="") == replace(text.sources, weights="", upsampler="")


@pytest.mark.parametrize("card", of_task(Task.WORLD_INTERPOLATOR), ids=lambda card: card.name)
def test_an_interpolator_makes_clips_of_ten_frames_as_released(card: ModelCard) -> None:
    video = CARDS[card.name.replace("WorldInterpolator", "Video2World").replace("_post-trained", "")]
    assert (card.network, card.upsampler, card.sources.upsampler) == (
        *(video.network, video.upsampler, video.sources.upsampler),
    )
    assert (card.video.min_frames, card.video.num_frames, card.video.max_frames) == (10, 10, 10)
    assert (card.sampler, card.guidance, card.num_branches) == ("RES", -1.0, 1)


def test_the_released_interpolator_draws_the_seed_that_its_script_never_passed_on() -> None:
    assert INTERPOLATOR.seed == 11
    assert {card.seed for card in CARDS.values() if INTERPOLATOR.name not in card.name} == {1, 0}
    assert {card.task for card in CARDS.values() if card.seed == 0} == {Task.TEXT2IMAGE, Task.AUTOREGRESSIVE}


def test_the_last_frame_of_an_interpolators_clip_is_a_latent_frame_of_its_own() -> None:
    assert [SEVEN.latent_frames(n) for n in (1, 9, 33, 121)] == [1, 2, 5, 16]
    assert INTERPOLATOR.latent_frames(10) == 3


def test_a_card_json_may_give_the_sizes_of_an_upsampler_that_sees() -> None:
    fields = {"upsampler": {"num_layers": 2}, "vision": {"num_layers": 3, "max_image_size": 256}}
    changed = with_overrides(INTERPOLATOR, fields)
    assert (changed.upsampler.num_layers, changed.upsampler.max_length) == (2, 4700)
    assert (changed.vision.num_layers, changed.vision.max_image_size, changed.vision.patch_size) == (
        3,
        256,
        16,
    )
    assert overrides_of(changed, INTERPOLATOR) == fields
    with pytest.raises(CatalogError, match=r"vision\.layers is no field"):
        with_overrides(INTERPOLATOR, {"vision": {"layers": 3}})
