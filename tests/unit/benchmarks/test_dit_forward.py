import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import dit_forward
from benchmarks.dit_forward import GIVEN_LEVEL, NOISE_LEVEL, latent_size, main, make_inputs, parse
from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.models.common.missing import te_missing
from cosmos_nemo.tools.standin import standin_card
from tests.fakes import CPU

PREDICT2, FOURTEEN = (f"Cosmos-Predict2-{size}-Video2World" for size in ("2B", "14B"))
COSMOS1 = ("Cosmos-1.0-Diffusion-7B-Text2World", "Cosmos-1.0-Diffusion-7B-Video2World")
SIZE = ["--height", "64", "--width", "96", "--num_frames", "9"]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PREDICT2, FOURTEEN, *COSMOS1):
        monkeypatch.setitem(CARDS, name, tiny(CARDS[name]))


def tiny(card: ModelCard) -> ModelCard:
    small = standin_card(card)
    return replace(small, network=replace(small.network, num_layers=2, text_length=16))


def measured(tmp_path: Path, *flags: str) -> dict[str, Any]:
    path = tmp_path / "rows.json"
    main([*flags, "--device", "cpu", "--repeats", "1", "--json", str(path)])
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [PREDICT2, FOURTEEN, *COSMOS1])
def test_diffusers_and_this_package_make_the_same_of_the_same_weights(tmp_path: Path, model: str) -> None:
    flags = ["--contestants", "torch", "diffusers", "--dtype", "float32"]
    ours, theirs = measured(tmp_path, "--model", model, *SIZE, *flags)["rows"]
    assert (ours["name"], theirs["name"]) == ("torch", "diffusers")
    assert ours["relative_l2"] == 0
    assert 0 < theirs["relative_l2"] < 1e-4


def test_the_given_frame_and_its_mask_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison would not see whether they reach both networks in the same way."""
    shape = CARDS[PREDICT2].network
    right = make_inputs(shape, [3, 8, 12], device=CPU, dtype=torch.float32)
    assert right.given_mask_B1THW is not None
    level = torch.tensor(NOISE_LEVEL)
    assert right.levels.tolist() == [[pytest.approx(GIVEN_LEVEL), level, level]]
    assert right.given_mask_B1THW.mean(dim=(0, 1, 3, 4)).tolist() == [1, 0, 0]
    wrong = [
        replace(right, levels=right.levels.flip(1)),
        replace(right, given_mask_B1THW=right.given_mask_B1THW.flip(2)),
    ]
    theirs = dit_forward.diffusers_contestant
    for inputs in wrong:
        monkeypatch.setattr(
            dit_forward,
            "diffusers_contestant",
            lambda shape, weights, _, inputs=inputs: theirs(shape, weights, inputs),
        )
        flags = ["--contestants", "torch", "diffusers", "--dtype", "float32"]
        rows = measured(tmp_path, "--model", PREDICT2, *SIZE, *flags)["rows"]
        assert rows[1]["relative_l2"] > 1e-3


def test_the_table_has_every_contestant_that_can_run_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(tmp_path, "--model", PREDICT2, *SIZE)
    names = ["torch", *([] if te_missing() else ["te"]), "diffusers"]
    assert [row["name"] for row in found["rows"]] == names
    assert (found["model"], found["latent"], found["tokens"]) == (PREDICT2, [3, 8, 12], 72)
    assert (found["ranks"], found["dtype"], found["torch"]) == (1, "bfloat16", torch.__version__)
    for row in found["rows"]:
        assert 0 < row["min"] <= row["seconds"] <= row["max"]
        assert row["peak_gib"] > row["beside_gib"] == 0, "the CPU's memory is not counted, the weights are"
        assert row["relative_l2"] < 0.05
    out = capsys.readouterr().out
    assert ("te is left out: " in out) is bool(te_missing())
    assert f"{PREDICT2}, latent [3, 8, 12], 72 tokens, bfloat16" in out
    assert [line.split()[0] for line in out.splitlines()[-len(names) :]] == names


def test_each_contestant_is_compared_with_float32_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured(tmp_path, "--model", PREDICT2, *SIZE, "--reference")["rows"]
    assert all(1e-4 < row["to_float32"] < 0.05 for row in rows)
    assert f"{rows[0]['to_float32']:.1e}" in capsys.readouterr().out
    exact = measured(tmp_path, "--model", PREDICT2, *SIZE, "--reference", "--dtype", "float32")["rows"]
    assert exact[0]["to_float32"] == 0
    assert "to_float32" not in measured(tmp_path, "--model", PREDICT2, *SIZE)["rows"][0]


def test_the_size_is_the_models_own_unless_one_is_asked_for() -> None:
    assert latent_size(CARDS[COSMOS1[0]], parse([])) == [16, 88, 160]
    assert latent_size(CARDS[PREDICT2], parse([])) == [24, 88, 160]
    asked = ["--height", "432", "--width", "768", "--num_frames", "81"]
    assert latent_size(CARDS[PREDICT2], parse(asked)) == [21, 54, 96]
    assert latent_size(CARDS[PREDICT2], parse(["--latent", "2", "4", "6"])) == [2, 4, 6]


def test_a_size_said_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--latent", "2", "4", "6", "--height", "64"])
    assert stopped.value.code == 2
    assert "--latent stands instead of" in capsys.readouterr().err
