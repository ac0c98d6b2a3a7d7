"""Which requests' tokens are drawn together, with recorded stages in place of models."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.pipelines.autoregressive import Autoregressive
from cosmos_nemo.request import AutoregressiveRequest
from cosmos_nemo.sampling.token_report import NotFiniteLogits
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.token_generation import LogitsError
from tests.fakes import CPU


class Recorded:
    """Stands for both tokenizer and transformer: an id tells of the frame it was made of."""

    def __init__(self) -> None:
        self.drawn: list[tuple[list[int], list[int]]] = []
        self.fails: NotFiniteLogits | None = None

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None: ...

    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        return ((pixels_BCTHW[:, 0, :1, ::16, ::16] + 1) * 127.5).round().long()

    def decode(self, ids_BThw: Tensor) -> Tensor:
        return ids_BThw[0, :, :, :, None].expand(-1, -1, -1, 3).to(torch.uint8)

    def __call__(self, given_BThw: Tensor, *, sampling: Any, seeds: list[int], on_step: Any) -> Tensor:
        if self.fails is not None:
            raise self.fails
        self.drawn.append((given_BThw[:, 0, 0, 0].tolist(), seeds))
        return torch.cat([given_BThw, given_BThw + 100], dim=1)

    def sentence(self, error: NotFiniteLogits, *, num_given: int) -> str:
        return f"{error}, {num_given} given"


@pytest.fixture
def stages() -> Recorded:
    return Recorded()


@pytest.fixture
def pipeline(stages: Recorded) -> Autoregressive:
    parts: dict[str, Any] = {"discrete_tokenizer": stages, "token_generation": stages}
    ranks = start_alone(CPU).replica
    return Autoregressive(**parts, decoder=None, tokenizer=None, video_guard=Skip(), ranks=ranks)


def request_of(folder: Path, value: int) -> AutoregressiveRequest:
    path = folder / f"{value}.npy"
    numpy.save(path, numpy.full((1, 32, 32, 3), value, numpy.uint8))
    return AutoregressiveRequest(
        prompt="",
        height=32,
        width=32,
        num_input_frames=1,
        visual_input=path,
        seed=value + 1,
        video_path=folder / f"{value}.mp4",
    )


def test_tokens_are_drawn_once_for_all_that_is_made_afterwards(
    stages: Recorded, pipeline: Autoregressive, tmp_path: Path
) -> None:
    requests = [request_of(tmp_path, value) for value in (10, 20, 30)]
    pipeline.ahead(requests[:2])
    videos = [pipeline(request) for request in requests]
    assert stages.drawn == [([10, 20], [11, 21]), ([30], [31])]
    assert [video.frames_THWC[:, 0, 0, 0].tolist() for video in videos if video] == [
        [10, 110],
        [20, 120],
        [30, 130],
    ]


def test_one_that_cannot_be_read_leaves_the_others_and_fails_by_itself(
    stages: Recorded, pipeline: Autoregressive, tmp_path: Path
) -> None:
    requests = [request_of(tmp_path, value) for value in (10, 20)]
    requests[0].visual_input.unlink()
    pipeline.ahead(requests)
    assert stages.drawn == [([20], [21])]
    with pytest.raises(ItemError, match=r"10\.npy does not exist"):
        pipeline(requests[0])
    assert pipeline(requests[1]) is not None and len(stages.drawn) == 1


def test_logits_that_are_nan_name_the_video_of_those_drawn_together(
    stages: Recorded, pipeline: Autoregressive, tmp_path: Path
) -> None:
    requests = [request_of(tmp_path, value) for value in (10, 20)]
    stages.fails = NotFiniteLogits(3, 1)
    with pytest.raises(LogitsError, match=r"20\.mp4 cannot be made: .* after 3 drawn .*, 4 given"):
        pipeline.ahead(requests)
    stages.fails = None
    assert pipeline(requests[0]) is not None
    assert stages.drawn[-1] == ([10], [11])
