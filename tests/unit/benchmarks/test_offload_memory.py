import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import offload_memory
from benchmarks.full_size_assets import write_network
from benchmarks.offload_memory import pipeline_of, request_of, write_small
from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.memory import PUBLISHED_OFFLOADS, predict
from cosmos_nemo.models.face_detector.model import FaceDetectorShape
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.stages.refiner_model import refiner_config
from cosmos_nemo.tools.standin import standin_card
from cosmos_nemo.tools.standin_pixtral import NANO_PIXTRAL, NANO_VISION
from cosmos_nemo.tools.standin_upsampler import NANO_UPSAMPLER
from tests.fakes import CPU

NANO = CARDS["Cosmos-Nano-Text2World"]


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own models, in its own places, at sizes that a CPU runs."""
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    t5 = {"d_model": NANO.network.text_dim, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1}
    guard = {**offload_memory.LLAMA_GUARD, **width, "num_key_value_heads": 1}
    monkeypatch.setattr(offload_memory, "LLAMA_GUARD", guard)
    monkeypatch.setattr(offload_memory, "SIGLIP", {**width, "image_size": 28, "patch_size": 14})
    monkeypatch.setattr(offload_memory, "T5_11B", t5)
    monkeypatch.setattr(offload_memory, "REFINER", {"intermediate_size": 64})
    detector = FaceDetectorShape(stem=4, widths=(2, 2, 2, 2), depths=(1, 1, 1, 1), pyramid=8)
    monkeypatch.setattr(offload_memory, "FACE_DETECTOR", detector)


CARDS_MEASURED = [
    replace(NANO, upsampler=NANO_UPSAMPLER),
    replace(CARDS["Cosmos-Nano-Video2World"], upsampler=NANO_PIXTRAL, vision=NANO_VISION),
    standin_card(CARDS["Cosmos-Predict2-2B-Video2World"]),
]


@pytest.mark.parametrize("card", CARDS_MEASURED, ids=lambda card: card.name)
@pytest.mark.parametrize("offload", [frozenset(), PUBLISHED_OFFLOADS[-1]])
def test_every_stage_of_a_measured_video_runs(
    tmp_path: Path, small_models: None, offload: frozenset[str], card: ModelCard
) -> None:
    write_network(card, tmp_path, CPU)
    write_small(tmp_path, card)
    groups = start_alone(CPU)
    pipeline = pipeline_of(
        card, tmp_path, tmp_path, offload=offload, groups=groups, backend="torch", device=CPU
    )
    request = request_of(card, tmp_path, height=64, width=64, num_frames=17, num_steps=2)
    video = pipeline(request)
    assert video is not None and video.frames_THWC.shape == (17, 64, 64, 3)
    assert not video.is_changed
    names = ["text_guard", "upsampler", "text_encoder", "denoise", "tokenizer", "video_guard"]
    assert [stage.name for stage in pipeline.stages] == names
    for stage in pipeline.stages:
        assert stage.module is not None, f"{stage.name} did nothing"
        emptied = all(tensor.numel() == 0 for tensor in stage.module.parameters())
        assert emptied is bool(offload), stage.name


class FakeSmi:
    gib = 7.0

    def __enter__(self) -> "FakeSmi":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_the_rows_of_the_table_are_printed_and_written(
    tmp_path: Path, small_models: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "Cosmos-Predict2-2B-Video2World"
    card = CARDS_MEASURED[-1]
    monkeypatch.setitem(CARDS, name, replace(card, video=replace(card.video, height=32, width=48)))
    monkeypatch.setattr(offload_memory, "DEVICE", CPU)
    monkeypatch.setattr(offload_memory, "Smi", FakeSmi)
    record = tmp_path / "rows.json"
    folder = tmp_path / "folder"
    flags = [str(folder), "--model", name, "--num_steps", "1", "--backend", "torch", "--json", str(record)]
    offload_memory.main([*flags, "--rows", "5", "0"])
    rows = json.loads(record.read_text())
    assert [(row["model"], row["row"], len(row["offload"])) for row in rows] == [(name, 5, 5), (name, 0, 0)]
    for row in rows:
        assert (row["nvidia_smi"], row["allocated"], row["reserved"]) == (7.0, 0, 0)
        assert 0 < sum(stage["seconds"] for stage in row["stages"].values()) < row["seconds"]
        assert row["predicted"] > 1
    assert rows[0]["predicted"] < rows[1]["predicted"]
    out = capsys.readouterr().out
    assert out.count(f"{name} row ") == 2 and out.count("  upsampler ") == 2
    assert (folder / name / "weights").is_dir(), "the network that was not there"


def test_a_video_has_its_models_own_size(tmp_path: Path) -> None:
    request = request_of(CARDS["Cosmos-Predict2-2B-Video2World"], tmp_path)
    assert (request.height, request.width, request.num_frames, request.fps) == (704, 1280, 93, 16)
    assert request.num_input_frames == 5
    request = request_of(CARDS["Cosmos-Predict1-7B-Video2World"], tmp_path)
    assert (request.height, request.width, request.num_frames, request.fps) == (704, 1280, 121, 24)
    assert request.num_input_frames == 9


def test_the_refiner_has_the_released_size(tmp_path: Path) -> None:
    """Counted by transformers, and as memory.py predicts it."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    card = CARDS["Cosmos-Predict2-2B-Video2World"]
    write_small(tmp_path, replace(card, video=replace(card.video, height=16, width=16)))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(refiner_config(tmp_path / "upsampler"))
    count = sum(parameter.numel() for parameter in model.parameters())
    [upsampler] = [stage for stage in predict(card).stages if stage.name == "upsampler"]
    assert count == 8_292_166_656 == upsampler.weights // 2
