import json
from pathlib import Path

import pytest
import torch

from benchmarks import token_decode
from cosmos_nemo.memory import token_parameters
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.groups import start_alone

SMALL = ("--device", "cpu", "--dtype", "float32", "--layers", "2", "--width", "64", "--latent", "3", "3", "4")


def test_the_table_has_a_row_for_each_batch_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = tmp_path / "rows.json"
    token_decode.main([*SMALL, "--backends", "torch", "te", "--batch_sizes", "1", "2", "--json", str(record)])
    out = capsys.readouterr().out
    assert "te is left out: Transformer Engine needs a CUDA device" in out
    rows = json.loads(record.read_text())["rows"]
    assert [(row["backend"], row["batch_size"], row["num_tokens"]) for row in rows] == [
        ("torch", 1, 12),
        ("torch", 2, 12),
    ]
    assert all(row["tokens_per_second"] > 0 and row["peak_gib"] is None for row in rows)
    assert all(row["share"] == pytest.approx(row["tokens_per_second"] / row["memory_allows"]) for row in rows)


def test_the_line_that_memory_allows_is_that_of_the_weights_and_the_cache() -> None:
    args = token_decode.parse([*SMALL])
    shape = token_decode.shape_of(args)
    groups = start_alone(torch.device("cpu"))
    network = token_decode.filled(
        shape, torch_backend(), groups.collection, torch.device("cpu"), torch.float32
    )
    weights = token_parameters(shape) - shape.embedding_rows * shape.hidden_size
    cache = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * (24 + 6)
    assert token_decode.bytes_of_a_step(network, 3, 24, 12) == 4 * (weights + 3 * cache)
    assert token_decode.prompt_length(shape) == 24


def test_both_ends_of_a_video_stand_for_all_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = tmp_path / "rows.json"
    flags = ["--backends", "torch", "--batch_sizes", "1", "--ends", "4", "--profile", "--json", str(record)]
    token_decode.main([*SMALL, *flags])
    [row] = json.loads(record.read_text())["rows"]
    assert [(span["begin"], span["num_tokens"]) for span in row["spans"]] == [(24, 4), (32, 4)]
    assert row["num_tokens"] == 8
    steps = [span["seconds"] / 3 for span in row["spans"]]
    assert row["tokens_per_second"] == pytest.approx(2 / sum(steps))
    assert "Self CPU" in capsys.readouterr().out


def test_ends_that_meet_are_the_whole_video(tmp_path: Path) -> None:
    record = tmp_path / "rows.json"
    token_decode.main(
        [*SMALL, "--backends", "torch", "--batch_sizes", "1", "--ends", "6", "--json", str(record)]
    )
    [row] = json.loads(record.read_text())["rows"]
    assert [(span["begin"], span["num_tokens"]) for span in row["spans"]] == [(24, 12)]
