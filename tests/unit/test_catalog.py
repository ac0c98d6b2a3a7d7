import json
from dataclasses import replace

import pytest

from cosmos_nemo.catalog import CARDS, CatalogError, find_card, overrides_of, with_overrides

SEVEN, FOURTEEN = (CARDS[f"Cosmos-1.0-Diffusion-{size}-Text2World"] for size in ("7B", "14B"))


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
