from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import offload_memory
from benchmarks.full_size_assets import write_network
from benchmarks.offload_memory import pipeline_of, request_of, write_small
from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.memory import PUBLISHED_OFFLOADS
from cosmos_nemo.models.face_detector.model import FaceDetectorShape
from cosmos_nemo.parallel.groups import start_alone
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
    detector = FaceDetectorShape(stem=4, widths=(2, 2, 2, 2), depths=(1, 1, 1, 1), pyramid=8)
    monkeypatch.setattr(offload_memory, "FACE_DETECTOR", detector)


CARDS_MEASURED = [
    replace(NANO, upsampler=NANO_UPSAMPLER),
    replace(CARDS["Cosmos-Nano-Video2World"], upsampler=NANO_PIXTRAL, vision=NANO_VISION),
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
