from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.memory import share_memory
from cosmos_nemo.stages import continuous_tokenizer
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from tests.fakes import CPU, FakeGroup

LATENT = torch.empty(1, 16, 24, 88, 160, device="meta")
"""Of 93 frames of 1280 x 704: four latent frames for each of six ranks."""


def has_room(device: torch.device, group: FakeGroup) -> bool:
    stage = WanTokenizerStage(shape=WanTokenizerShape(), folder=Path(), device=device)
    return stage.has_room(LATENT, group)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_gpu_has_room_where_its_share_fits(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    needed = share_memory(WanTokenizerShape(), (24, 88, 160), 4)
    free = needed.weights + needed.work - missing
    monkeypatch.setattr(continuous_tokenizer, "free_bytes", lambda device: free)
    assert has_room(torch.device("cuda", 0), FakeGroup(6, 5)) == (not missing)


@pytest.mark.parametrize(
    ("device", "group"),
    [
        (torch.device("cuda", 0), FakeGroup(8, 8)),
        (torch.device("cuda", 0), FakeGroup(2, 0)),
        (CPU, FakeGroup(6, 0)),
    ],
    ids=["no share", "decoded by one rank", "CPU"],
)
def test_where_nothing_is_shared_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, group: FakeGroup
) -> None:
    def asked(device: torch.device) -> int:
        raise AssertionError("nothing depends on it")

    monkeypatch.setattr(continuous_tokenizer, "free_bytes", asked)
    assert has_room(device, group)
