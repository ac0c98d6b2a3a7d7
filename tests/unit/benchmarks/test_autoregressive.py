import json
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks import full_size_assets, offload_memory
from benchmarks.autoregressive import PUBLISHED_GB, FewTokens, given_frames, main
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.memory import published_offloads
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.face_detector.model import FaceDetectorShape
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.tools.standin import standin_card, write_standin
from tests.fakes import CPU

FOUR, TWELVE = "Cosmos-Predict1-4B", "Cosmos-Predict1-12B"


@pytest.fixture
def small_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its models at sizes that a CPU runs."""
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(offload_memory, "SIGLIP", {**width, "image_size": 28, "patch_size": 14})
    detector = FaceDetectorShape(stem=4, widths=(2, 2, 2, 2), depths=(1, 1, 1, 1), pyramid=8)
    monkeypatch.setattr(offload_memory, "FACE_DETECTOR", detector)


@pytest.fixture
def small_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards themselves shrink, so that their full size is one that a CPU runs."""
    for name in (FOUR, TWELVE):
        monkeypatch.setitem(CARDS, name, standin_card(CARDS[name]))


def test_whole_videos_are_made_and_their_costs_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets, record = tmp_path / "assets", tmp_path / "rows.json"
    write_standin([CARDS[FOUR]], assets, seed=0, layout="folder")
    flags = [str(assets), "--model", FOUR, "--json", str(record)]
    main([*flags, "--runs", "--num_steps 1", "--disable_diffusion_decoder", "--", "--backend", "torch"])
    whole, quick = json.loads(record.read_text())
    assert [whole["run"], quick["run"]] == ["--num_steps 1", "--disable_diffusion_decoder"]
    assert whole["frames"] == quick["frames"] == [33, 64, 96, 3]
    assert [*quick["stages"]] == ["discrete_tokenizer", "token_generation"]
    assert [*whole["stages"]] == [*quick["stages"], "diffusion_decoder", "tokenizer"]
    assert whole["request"]["num_input_frames"] == 9 and whole["backend"] == "torch"
    assert 0 < whole["work_seconds"] + whole["load_seconds"] < whole["wall_seconds"]
    assert whole["tokens_per_second"] > 0 and whole["is_identical"] and not quick["is_identical"]
    out = capsys.readouterr().out
    assert "  work " in out and "tokens/s" in out and "diffusion_decoder " in out


def test_a_run_that_fails_ends_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--runs", "--top_p 2"])
    assert "base.py" in str(stopped.value) and str(stopped.value).endswith("ended with 2")
    assert "top_p" in capsys.readouterr().err


@pytest.mark.usefixtures("small_cards", "small_guard")
def test_the_rows_of_the_table_run_on_what_full_size_assets_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "rows.json"
    full_size_assets.main([str(tmp_path), "--model", FOUR])
    main([str(tmp_path), "--model", FOUR, "--rows", "0", "4", "--tokens", "8", "--json", str(record)])
    nothing, everything = json.loads(record.read_text())
    names = ["discrete_tokenizer", "token_generation", "diffusion_decoder", "tokenizer", "video_guard"]
    for row in (nothing, everything):
        assert (row["kind"], row["model"], row["allocated"]) == ("memory", FOUR, 0)
        assert [*row["stages"]] == names
        assert all(cost["seconds"] > 0 for cost in row["stages"].values())
    assert nothing["offload"] == [] and nothing["published_gb"] == 31.3
    assert everything["offload"] == ["diffusion_decoder", "guardrails", "token_generation", "tokenizer"]
    assert everything["predicted"] < nothing["predicted"] and everything["published_gb"] == 18.7
    out = capsys.readouterr().out
    assert f"{FOUR} row 0 (nothing): allocated 0.0" in out and "published 18.7 GB" in out


@pytest.mark.usefixtures("small_cards")
def test_random_weights_draw_many_different_tokens_with_finite_logits(tmp_path: Path) -> None:
    card = CARDS[TWELVE]
    assert card.tokens is not None
    full_size_assets.main([str(tmp_path), "--model", TWELVE, "--parts", "network"])
    shape = card.tokens.network
    stage = FewTokens(
        shape=shape,
        checkpoint=tmp_path / TWELVE,
        groups=start_alone(CPU),
        backend=torch_backend(),
        device=CPU,
        dtype=torch.bfloat16,
    )
    stage.num_tokens = 40
    _, rows, columns = shape.latent_THW
    given = torch.randint(shape.vocab_size, (2, 2, rows, columns))
    with stage as generate:
        tokens = generate(given, seeds=[0, 1])
    assert tokens.shape == (2, *shape.latent_THW)
    drawn = tokens.flatten(1)[:, 2 * rows * columns :][:, :40]
    assert len(drawn.unique()) > 40 and torch.equal(tokens[:, :2], given)


def test_the_frames_to_go_on_from_move() -> None:
    frames = given_frames(height=64, width=128)
    assert frames.shape == (9, 64, 128, 3) and frames.dtype == numpy.uint8
    assert all((before != after).any() for before, after in pairwise(frames))


def test_the_published_rows_are_those_of_the_cards() -> None:
    assert [*PUBLISHED_GB] == [FOUR, TWELVE]
    assert all(len(published_offloads(CARDS[name])) + 1 == len(rows) for name, rows in PUBLISHED_GB.items())
