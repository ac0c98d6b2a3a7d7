import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.request import RequestError
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.training.nano import make
from cosmos_nemo.training.nano.captions import SUBJECT_PREFIX
from cosmos_nemo.training.nano.make import (
    LOG,
    RECIPE,
    SUBJECT,
    Maker,
    fraction_of,
    write_subject_videos,
)

CPU = torch.device("cpu")
CARD = CARDS["Cosmos-Nano-Text2World"]
TINY = replace(
    fraction_of(RECIPE, 1e-6), num_clips=2, base=replace(fraction_of(RECIPE, 1e-6).base, num_steps=3)
)


def maker(folder: Path, *, deadline: float = float("inf")) -> Maker:
    return Maker(
        folder=folder, card=CARD, recipe=TINY, groups=start_alone(CPU), device=CPU, deadline=deadline
    )


def log(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / LOG).read_text()))


def test_a_fraction_of_the_recipe_has_a_share_of_everything_and_at_least_one() -> None:
    assert fraction_of(RECIPE, 1) is RECIPE
    half = fraction_of(RECIPE, 0.5)
    assert (half.tokenizer_steps, half.num_clips, half.base.num_steps) == (3000, 16384, 5000)
    assert half.base.global_batch_size == half.base.micro_batch_size == 128
    least = fraction_of(RECIPE, 1e-9)
    assert (least.tokenizer_batch, least.text_steps, least.subject.num_steps) == (1, 1, 1)


def test_the_subjects_clips_lie_beside_captions_that_begin_with_its_phrase(tmp_path: Path) -> None:
    write_subject_videos(tmp_path / "clips", seed=0)
    videos = sorted((tmp_path / "clips").glob("*.npy"))
    assert len(videos) == 18
    assert numpy.load(videos[0]).shape == (33, 128, 128, 3)
    texts = {video.with_suffix(".txt").read_text() for video in videos}
    assert len(texts) == 18 and all(text.startswith(SUBJECT_PREFIX) for text in texts)
    before = videos[0].stat().st_mtime_ns
    write_subject_videos(tmp_path / "clips", seed=0)
    assert videos[0].stat().st_mtime_ns == before


def test_the_subjects_clips_are_not_written_beside_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="does not hold the clips: pass a new folder"):
        write_subject_videos(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_made_with_another_seed_is_refused(tmp_path: Path) -> None:
    assert not maker(tmp_path, deadline=0.0).make()
    with pytest.raises(RequestError, match="another seed or fraction"):
        replace(maker(tmp_path), seed=1).make()


@pytest.mark.slow
def test_a_making_that_ran_out_of_time_goes_on_and_ends_with_files_that_inference_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock() -> float:
        """Late as soon as the network's training has begun."""
        return 2.0 if (tmp_path / "text2world_log").exists() else 0.0

    with monkeypatch.context() as patched:
        patched.setattr(make, "time", SimpleNamespace(monotonic=clock))
        assert not maker(tmp_path, deadline=1.0).make()
    assert [entry["part"] for entry in log(tmp_path)][-1] == "nemo" and log(tmp_path)[-1]["steps"] == 1
    made = maker(tmp_path)
    tokenizer = made.tokenizer_dir / "tokenizer.safetensors"
    before = tokenizer.stat().st_mtime_ns
    assert made.make()
    assert tokenizer.stat().st_mtime_ns == before
    assert [entry["steps"] for entry in log(tmp_path) if "steps" in entry] == [1, 3, 1]
    for weights in (made.weights_dir, tmp_path / SUBJECT):
        network_rules(CARD.network, open_checkpoint(weights))
    Tokenizer(shape=CARD.tokenizer, folder=made.tokenizer_dir, device=CPU).check()
    with TextEncoder(
        folder=made.text_encoder_dir, text_length=128, text_dim=64, device=CPU, dtype=torch.float32
    ) as encode:
        assert encode(["A red ball."]).shape == (1, 128, 64)
    assert made.make() and len(log(tmp_path)) == 6
