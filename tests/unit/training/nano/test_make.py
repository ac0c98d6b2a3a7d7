import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.request import RequestError
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.tokenizer_choice import tokenizer_for
from cosmos_nemo.training.nano import make
from cosmos_nemo.training.nano.captions import SUBJECT_PREFIX
from cosmos_nemo.training.nano.make import (
    AUTOREGRESSIVE,
    INTERPOLATOR,
    LOG,
    PREDICT2,
    SUBJECT,
    VIDEO2WORLD,
    Maker,
    take_shipped,
    write_subject_videos,
)
from cosmos_nemo.training.nano.recipe import RECIPE, fraction_of
from cosmos_nemo.training.nemo_checkpoint import CONTEXT
from tests.parallel.train_worker import weights_in

CPU = torch.device("cpu")
WAN, DISCRETE = "Cosmos-Nano-Tokenizer-Wan", "Cosmos-Nano-Tokenizer-DV8x16x16"
CARD = CARDS["Cosmos-Nano-Text2World"]
_LEAST = fraction_of(RECIPE, 1e-6)
TINY = replace(
    _LEAST,
    num_clips=2,
    predict2_clips=2,
    token_clips=2,
    base=replace(_LEAST.base, num_steps=3),
    video2world=replace(_LEAST.video2world, num_steps=3),
    predict2=replace(_LEAST.predict2, num_steps=3),
    autoregressive=replace(_LEAST.autoregressive, num_steps=3),
)


def maker(folder: Path, *only: str, deadline: float = float("inf")) -> Maker:
    return Maker(
        folder=folder,
        card=CARD,
        recipe=TINY,
        groups=start_alone(CPU),
        device=CPU,
        deadline=deadline,
        only=frozenset(only),
    )


def log(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / LOG).read_text()))


def test_a_fraction_of_the_recipe_has_a_share_of_everything_and_at_least_one() -> None:
    assert fraction_of(RECIPE, 1) is RECIPE
    half = fraction_of(RECIPE, 0.5)
    assert (half.tokenizer_steps, half.num_clips, half.base.num_steps) == (3000, 16384, 5000)
    assert half.base.global_batch_size == half.base.micro_batch_size == 128
    assert (half.discrete_tokenizer_steps, half.token_clips, half.autoregressive.num_steps) == (
        RECIPE.discrete_tokenizer_steps // 2,
        RECIPE.token_clips // 2,
        RECIPE.autoregressive.num_steps // 2,
    )
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
    with pytest.raises(RequestError, match="another seed, fraction or --only"):
        replace(maker(tmp_path), seed=1).make()


def test_what_is_shipped_is_taken_once_and_not_made_again(tmp_path: Path) -> None:
    but = frozenset({VIDEO2WORLD})
    take_shipped(tmp_path, but=but)
    made = maker(tmp_path)
    paths = (made.tokenizer_dir, made.text_encoder_dir, made.weights_dir)
    assert [name for name, path, _ in made._parts() if not path.exists()] == [
        SUBJECT,
        VIDEO2WORLD,
    ]
    network_rules(CARD.network, open_checkpoint(made.weights_dir))
    before = [path.stat().st_mtime_ns for path in paths]
    (made.tokenizer_dir / "mean_std.pt").write_bytes(b"mine")
    take_shipped(tmp_path, but=but)
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert (made.tokenizer_dir / "mean_std.pt").read_bytes() == b"mine"


def test_the_models_that_are_told_frames_are_made_from_the_shipped_ones_and_go_on(tmp_path: Path) -> None:
    only = (VIDEO2WORLD, INTERPOLATOR)
    take_shipped(tmp_path, but=frozenset(only))
    steps: list[int] = []
    late = replace(
        maker(tmp_path, *only),
        on_step=lambda report: steps.append(report.step),
        deadline=time.monotonic() + 3600,
    )
    with pytest.MonkeyPatch.context() as patched:
        clock = SimpleNamespace(monotonic=lambda: float("inf") if steps else 0.0)
        patched.setattr(make, "time", clock)
        assert not late.make()
    assert steps == [1, 2]
    made = maker(tmp_path, *only)
    assert made.make()
    assert [entry["part"] for entry in log(tmp_path)] == [
        "clips.pt",
        VIDEO2WORLD,
        VIDEO2WORLD,
        "pairs.pt",
        INTERPOLATOR,
    ]
    base = weights_in(made.weights_dir, CARD)["final_layer.linear.weight"]
    for name in (VIDEO2WORLD, INTERPOLATOR):
        folder = made.weights_dir_of(CARDS[name])
        ours = weights_in(folder, CARDS[name])["final_layer.linear.weight"]
        assert 0 < float((ours - base).abs().max()) < 1e-3
        assert json.loads((folder / CONTEXT / "training.json").read_text())["model"] == name
    pairs = torch.load(tmp_path / "pairs.pt", weights_only=True)
    assert pairs["latents_NCTHW"].shape == (2, 16, 3, 16, 16)


@pytest.mark.parametrize("name", [WAN, PREDICT2, VIDEO2WORLD, INTERPOLATOR, SUBJECT, CARD.name, DISCRETE])
def test_each_part_can_be_made_alone_of_what_is_shipped(tmp_path: Path, name: str) -> None:
    maker(tmp_path, name).check_only()


def test_what_is_neither_shipped_nor_made_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "EMBEDDED", tmp_path)
    with pytest.raises(RequestError, match=f"{PREDICT2} needs {WAN}, which is not in the package: add it"):
        maker(tmp_path, PREDICT2, "Cosmos-Nano-T5").check_only()
    with pytest.raises(RequestError, match=f"{AUTOREGRESSIVE} needs {DISCRETE}, which is not in"):
        maker(tmp_path, AUTOREGRESSIVE).check_only()
    maker(tmp_path, AUTOREGRESSIVE, DISCRETE).check_only()


def test_a_folder_made_of_other_parts_is_refused(tmp_path: Path) -> None:
    maker(tmp_path, SUBJECT).check_recipe()
    with pytest.raises(RequestError, match="another seed, fraction or --only"):
        maker(tmp_path, SUBJECT, VIDEO2WORLD).check_recipe()


def test_the_autoregressive_model_is_made_of_nothing_that_is_shipped_and_goes_on(tmp_path: Path) -> None:
    only = (DISCRETE, AUTOREGRESSIVE)
    with pytest.MonkeyPatch.context() as patched:
        clock = SimpleNamespace(monotonic=lambda: 2.0 if (tmp_path / "tokens.pt").exists() else 0.0)
        patched.setattr(make, "time", clock)
        assert not maker(tmp_path, *only, deadline=1.0).make()
    assert [(entry["part"], entry.get("steps")) for entry in log(tmp_path)] == [
        (DISCRETE, None),
        ("tokens.pt", None),
        (AUTOREGRESSIVE, 1),
    ]
    made, tokens = maker(tmp_path, *only), CARDS[AUTOREGRESSIVE].tokens
    assert made.make() and tokens is not None
    assert log(tmp_path)[-1]["steps"] == 3
    assert 8 < log(tmp_path)[-1]["loss_of_held_out"] < 9  # the logarithm of 5,000
    folder = made.weights_dir_of(CARDS[AUTOREGRESSIVE])
    token_rules(tokens.network, open_checkpoint(folder))
    assert json.loads((folder / CONTEXT / "training.json").read_text())["model"] == AUTOREGRESSIVE
    DiscreteTokenizerStage(shape=tokens.tokenizer, folder=made.discrete_tokenizer_dir, device=CPU).check()
    saved = torch.load(tmp_path / "tokens.pt", weights_only=True)
    assert {name: tuple(ids.shape) for name, ids in saved.items()} == {
        "trained": (2, 320),
        "held_out": (2, 320),
    }
    assert (tmp_path / "autoregressive_log/losses.csv").read_text().count("\n") >= 2
    assert (tmp_path / "autoregressive_log/loss.png").is_file()


@pytest.mark.slow
def test_predict2s_tokenizer_and_network_are_made_of_the_shipped_text_encoder(tmp_path: Path) -> None:
    only = (WAN, PREDICT2)
    take_shipped(tmp_path, but=frozenset(only))
    made, card = maker(tmp_path, *only), CARDS[PREDICT2]
    assert made.make()
    assert [entry["part"] for entry in log(tmp_path)] == [WAN, "wan_clips.pt", PREDICT2]
    network_rules(card.network, open_checkpoint(made.weights_dir_of(card)))
    tokenizer_for(card.tokenizer, folder=made.tokenizer_dir_of(card), device=CPU).check()
    assert torch.load(tmp_path / "wan_clips.pt", weights_only=True)["latents_NCTHW"].shape == (
        2,
        16,
        9,
        16,
        16,
    )


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
    assert log(tmp_path)[-1]["part"] == CARD.name and log(tmp_path)[-1]["steps"] == 1
    made = maker(tmp_path)
    tokenizer = made.tokenizer_dir / "tokenizer.safetensors"
    before = tokenizer.stat().st_mtime_ns
    assert made.make()
    assert tokenizer.stat().st_mtime_ns == before
    assert [(entry["part"], entry["steps"]) for entry in log(tmp_path) if "steps" in entry] == [
        (CARD.name, 1),
        (CARD.name, 3),
        (SUBJECT, 1),
        (VIDEO2WORLD, 3),
        (INTERPOLATOR, 1),
        (PREDICT2, 3),
        (AUTOREGRESSIVE, 3),
    ]
    for weights in (made.weights_dir, tmp_path / SUBJECT):
        network_rules(CARD.network, open_checkpoint(weights))
    for name in (VIDEO2WORLD, INTERPOLATOR):
        network_rules(CARDS[name].network, open_checkpoint(made.weights_dir_of(CARDS[name])))
    Tokenizer(shape=CARD.tokenizer, folder=made.tokenizer_dir, device=CPU).check()
    with TextEncoder(
        folder=made.text_encoder_dir, text_length=128, text_dim=64, device=CPU, dtype=torch.float32
    ) as encode:
        assert encode(["A red ball."]).shape == (1, 128, 64)
    assert made.make() and len(log(tmp_path)) == 15
