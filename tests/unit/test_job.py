import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_nemo import job
from cosmos_nemo.catalog import find_card
from cosmos_nemo.cli import Invocation
from cosmos_nemo.job import PERSON_ERRORS, Job, describe, prepare
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import RequestError, Setup, Text2WorldRequest

NANO = "Cosmos-Nano-Text2World"
REQUEST = Text2WorldRequest(prompt="x", height=32, width=48, num_frames=9)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin(find_card(NANO), folder, seed=0, layout="folder")
    return folder


def _prepare(
    assets: Path | None, tmp_path: Path, *, dry_run: bool = False, ranks: Ranks | None = None
) -> Job:
    setup = Setup(model=NANO, assets_dir=assets)
    request = replace(REQUEST, video_path=tmp_path / "a.mp4")
    invocation = Invocation(setup=setup, request=request, dry_run=dry_run)
    return prepare(invocation, ranks=ranks or Ranks(), environ={})


def test_a_stand_in_is_prepared_without_reading_weights(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmos_nemo.checkpoint.reader import Checkpoint

    def read(*_: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "read", read)
    found = _prepare(nano, tmp_path)
    assert found.plan == Plan() and found.device == torch.device("cpu") and found.dtype == torch.float32
    assert found.backend.name == "torch" and found.files.complete


def test_card_json_of_weights_and_tokenizer_are_merged(nano: Path, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    shutil.copytree(nano, assets)
    (assets / NANO / "nemo" / "card.json").write_text(json.dumps({"video": {"max_frames": 9}}))
    tokenizer = assets / "Cosmos-Nano-Tokenizer-CV8x8x8"
    (tokenizer / "card.json").write_text(json.dumps({"tokenizer": {"statistics_frames": 16}, "guidance": 3}))
    found = _prepare(assets, tmp_path)
    assert found.card.video.max_frames == 9 and found.card.guidance == 3.0
    assert found.card.network == find_card(NANO).network


def test_the_request_is_held_to_the_card_json(nano: Path, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    shutil.copytree(nano, assets)
    (assets / NANO / "nemo" / "card.json").write_text(json.dumps({"video": {"min_frames": 17}}))
    with pytest.raises(RequestError, match=r"--num_video_frames 9 .* from 17 to 121"):
        _prepare(assets, tmp_path)


def test_fingerprints_are_taken_on_rank_0_alone(nano: Path, tmp_path: Path) -> None:
    assert set(_prepare(nano, tmp_path).identities) == {"weights", "tokenizer", "text_encoder"}
    assert _prepare(nano, tmp_path, ranks=Ranks(rank=1, num_ranks=2, address="a")).identities == {}


def test_a_dry_run_without_files_says_so_and_downloads_nothing(tmp_path: Path) -> None:
    found = _prepare(None, tmp_path, dry_run=True)
    assert not found.files.complete and found.identities == {}
    assert describe(found).count("not here") == 3
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_describes_the_calls_that_will_be_made(nano: Path, tmp_path: Path) -> None:
    text = describe(_prepare(nano, tmp_path, dry_run=True))
    assert "9 frames of 48 x 32 at 24 fps" in text
    assert "latent 2 x 4 x 6, 12 tokens; RES, 35 steps, guidance 7: 72 network calls" in text


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"COSMOS_NEMO_CACHE": "/c"}, Path("/c/text")),
        ({"COSMOS_NEMO_CACHE": ""}, None),
        ({"COSMOS_NEMO_CACHE": "", "HOME": "/h"}, None),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/x/cosmos_nemo/text")),
        ({"HOME": "/h"}, Path("/h/.cache/cosmos_nemo/text")),
        ({}, None),
    ],
)
def test_where_embeddings_are_kept(environ: dict[str, str], folder: Path | None) -> None:
    assert job._text_cache_folder(environ) == folder


@pytest.mark.parametrize(
    ("ranks", "visible", "device"),
    [
        (Ranks(), 1, "cuda:0"),
        (Ranks(local_rank=3, num_ranks=8), 8, "cuda:3"),
        (Ranks(local_rank=3, num_ranks=8), 1, "cuda:0"),  # Slurm shows each task its own
        (Ranks(local_rank=3, num_ranks=8, store_is_hosted=True), 1, None),
        (Ranks(local_rank=3, num_ranks=8), 2, None),
    ],
)
def test_each_rank_has_its_own_gpu_or_says_that_there_are_too_few(
    ranks: Ranks, visible: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if device is not None:
        assert job._device(ranks) == torch.device(device)
        return
    with pytest.raises(RequestError, match=f"which shows {visible} GPU"):
        job._device(ranks)


def test_all_errors_for_people_are_value_errors() -> None:
    assert all(issubclass(error, ValueError) for error in PERSON_ERRORS)
