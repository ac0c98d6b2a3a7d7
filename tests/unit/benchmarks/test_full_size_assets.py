import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from benchmarks import full_size_assets, text2world
from benchmarks.full_size_assets import main
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.cli import parse_general
from cosmos_nemo.launch import run
from cosmos_nemo.tools.standin import standin_card

PREDICT2, FOURTEEN = (f"Cosmos-Predict2-{size}-Video2World" for size in ("2B", "14B"))
COSMOS1 = "Cosmos-1.0-Diffusion-7B-Text2World"
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"]


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards themselves shrink, so that their full size is one that a CPU runs."""
    for name in (PREDICT2, FOURTEEN, COSMOS1):
        card = standin_card(CARDS[name])
        monkeypatch.setitem(CARDS, name, replace(card, network=replace(card.network, text_dim=64)))
    t5 = {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1, "vocab_size": 32128}
    monkeypatch.setattr(full_size_assets, "T5_11B", t5)


@pytest.mark.parametrize("model", [PREDICT2, COSMOS1])
def test_a_video_is_made_of_what_is_written(
    tmp_path: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assets, video = tmp_path / "assets", tmp_path / "video.npy"
    main([str(assets), "--model", model])
    assert capfd.readouterr().out.count(": written in ") == 3
    args = text2world.parse([str(assets), "--model", model])
    shared = [*text2world.visual_flags(CARDS[model], None, tmp_path), *SMALL]
    command, ranks = text2world.command_of(args, "torch --seed 3", shared, video)
    assert ranks == 1 and command[1] == str(text2world.GENERAL)
    status = run(lambda: parse_general(command[2:]), environ={"COSMOS_NEMO_CACHE": str(tmp_path / "cache")})
    assert status == 0, capfd.readouterr().err
    assert numpy.load(video).shape == (9, 32, 48, 3)
    manifest = json.loads(video.with_suffix(".json").read_text())
    assert (manifest["model"], manifest["request"]["seed"]) == (model, 3)
    assert [*manifest["stages"]] == ["text_encoder", "denoise", "tokenizer"]


def test_what_is_there_stays_and_models_share_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["--parts", "network", "tokenizer"]
    main([str(tmp_path), "--model", PREDICT2, *parts])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).parts[0] for path in before} == {PREDICT2, "Wan-AI"}
    capsys.readouterr()
    main([str(tmp_path), "--model", FOURTEEN, *parts])
    main([str(tmp_path), "--model", PREDICT2, *parts])
    said = [line.partition(":")[2][:8] for line in capsys.readouterr().out.splitlines()]
    assert said == [" written", " is ther", " is ther", " is ther"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / FOURTEEN / "weights" / ".metadata").is_file()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--parts", "guardrails"])
    assert stopped.value.code == 2
    assert not any(tmp_path.iterdir())
