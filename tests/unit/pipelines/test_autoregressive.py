"""Which requests' tokens are drawn together, with recorded stages in place of models."""

from itertools import pairwise
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
from cosmos_nemo.stages.parked import RESERVE, Parked
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.token_generation import LogitsError
from tests.fakes import CPU, FakeGroup, RecordedStage, RecordedTokenizer, RecordedVideoGuard
from tests.unit.stages.test_parked import FakeTransfer


class Recorded:
    """Stands for both tokenizer and transformer: an id tells of the frame it was made of."""

    def __init__(self) -> None:
        self.drawn: list[tuple[list[int], list[int]]] = []
        self.fails: NotFiniteLogits | None = None

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None: ...

    def prefetch(self, **_: object) -> None: ...

    def work_bytes(self, batch_size: int) -> int:
        return batch_size

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


class Discrete(RecordedStage):
    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("discrete_tokenizer", journal, **options)

    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        self.called()
        return torch.zeros(1, 1, 2, 2, dtype=torch.int64)

    def decode(self, ids_BThw: Tensor) -> Tensor:
        self.called()
        return torch.zeros(9, 32, 32, 3, dtype=torch.uint8)


class Generation(RecordedStage):
    needs = 1

    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("token_generation", journal, **options)

    def work_bytes(self, batch_size: int) -> int:
        return batch_size * self.needs

    def __call__(self, given_BThw: Tensor, **_: Any) -> Tensor:
        self.called()
        return given_BThw.repeat(1, 2, 1, 1)


class Decoder(RecordedStage):
    reserved: int | None = None

    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("diffusion_decoder", journal, **options)

    def prefetch(self, *, reserve: int = RESERVE) -> None:
        self.reserved = reserve
        super().prefetch(reserve=reserve)

    def __call__(self, ids_BThw: Tensor, **_: Any) -> list[Tensor]:
        self.called()
        return [torch.zeros(1, 16, 2, 1, 1)]


ORDER = ("discrete_tokenizer", "token_generation", "diffusion_decoder", "tokenizer", "video_guard")
WITHOUT_DECODER = ("discrete_tokenizer", "token_generation", "discrete_tokenizer", "video_guard")
KINDS: dict[str, Any] = {
    "discrete_tokenizer": Discrete,
    "token_generation": Generation,
    "diffusion_decoder": Decoder,
    "tokenizer": RecordedTokenizer,
    "video_guard": RecordedVideoGuard,
}


class Made:
    """A pipeline of recorded stages that are all offloaded; `journal` holds what they did."""

    def __init__(self, *, order: tuple[str, ...] = ORDER, fails: str = "") -> None:
        self.journal: list[str] = []
        self.stages = {name: KINDS[name](self.journal, fails=name == fails) for name in dict.fromkeys(order)}
        one: Any = FakeGroup(1, 0)
        self.pipeline = Autoregressive(
            discrete_tokenizer=self.stages["discrete_tokenizer"],
            token_generation=self.stages["token_generation"],
            decoder=self.stages.get("diffusion_decoder"),
            tokenizer=self.stages.get("tokenizer"),
            video_guard=self.stages["video_guard"],
            ranks=one,
        )


@pytest.mark.parametrize("order", [ORDER, WITHOUT_DECODER], ids=["decoder", "without"])
def test_the_next_stage_is_prefetched_while_one_works(order: tuple[str, ...], tmp_path: Path) -> None:
    made = Made(order=order)
    made.pipeline(request_of(tmp_path, 10))
    made.journal.clear()
    made.pipeline(request_of(tmp_path, 20))
    expected = []
    for stage, following in zip(order, (*order[1:], None), strict=True):
        expected += [f"{stage}.enter", *([f"{following}.prefetch"] if following else [])]
        expected += [f"{stage}.call", f"{stage}.exit"]
    assert made.journal == expected


@pytest.mark.parametrize(("works", "following"), [*pairwise(ORDER)])
def test_what_was_prefetched_for_a_stage_that_raises_is_dropped(
    works: str, following: str, tmp_path: Path
) -> None:
    made, arriving = Made(), list[bool]()
    made.stages[following].parked = Parked(FakeTransfer())
    made.pipeline(request_of(tmp_path, 10))

    def fail() -> None:
        arriving.append(made.stages[following].parked.is_arriving)
        raise KeyError("inside")

    made.stages[works].called = fail
    with pytest.raises(KeyError, match="inside"):
        made.pipeline(request_of(tmp_path, 20))
    assert arriving == [True]
    assert not made.stages[following].parked.is_arriving


@pytest.mark.parametrize("following", ORDER[1:])
def test_a_prefetched_stage_is_copied_once(following: str, tmp_path: Path) -> None:
    made, transfer = Made(), FakeTransfer()
    made.stages[following].parked = Parked(transfer)
    for value in (10, 20):
        made.pipeline(request_of(tmp_path, value))
    assert transfer.journal == ["host", "released", "start", "wait", "released"]


def test_a_prefetch_that_fails_ends_the_run_with_its_error_and_everything_parked(tmp_path: Path) -> None:
    made, transfer = Made(), FakeTransfer()
    made.stages["diffusion_decoder"].parked = Parked(transfer)
    made.pipeline(request_of(tmp_path, 10))

    def fail(host: Tensor, **_: object) -> Any:
        raise RuntimeError("the device is gone")

    transfer.start = fail  # type: ignore[method-assign]
    made.journal.clear()
    with pytest.raises(RuntimeError, match="the device is gone"):
        made.pipeline(request_of(tmp_path, 20))
    assert made.journal[-1] == "token_generation.exit" and "diffusion_decoder.enter" not in made.journal
    assert not any(stage.holds_weights for stage in made.stages.values())


def test_the_decoder_leaves_room_for_the_keys_and_values_of_all_that_is_drawn_together(
    tmp_path: Path,
) -> None:
    made = Made()
    generation, decoder = made.stages["token_generation"], made.stages["diffusion_decoder"]
    made.pipeline(request_of(tmp_path, 10))
    assert decoder.reserved == RESERVE
    generation.needs = RESERVE
    made.pipeline.ahead([request_of(tmp_path, value) for value in (20, 30)])
    assert decoder.reserved == 2 * RESERVE
