from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.memory import token_work
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.groups import Groups, start_alone
from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.token_report import NotFiniteLogits
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.token_generation import PromptTokensError, TokenGeneration
from tests.fakes import CPU, FakeGroup
from tests.token_network import TINY_TOKENS, FakeTokenNetwork

WITH_TEXT = replace(TINY_TOKENS, text_dim=6, text_length=3)
ROWS, COLUMNS = TINY_TOKENS.latent_THW[1:]


class FakeGeneration(TokenGeneration):
    """The stage with a network that no checkpoint holds."""

    def _build(self) -> nn.Module:
        return FakeTokenNetwork(self.shape, dtype=self.dtype)


def stage(
    shape: TokenShape = TINY_TOKENS, *, groups: Groups | None = None, **changes: Any
) -> TokenGeneration:
    return FakeGeneration(
        shape=shape,
        checkpoint=Path("absent"),
        groups=groups or start_alone(CPU),
        backend=torch_backend(),
        device=CPU,
        dtype=torch.float32,
        **changes,
    )


def given(*, videos: int = 2, frames: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(TINY_TOKENS.vocab_size, (videos, frames, ROWS, COLUMNS), generator=generator)


def made(
    given_BTHW: Tensor | None = None,
    seeds: Sequence[int] = (3, 4),
    *,
    shape: TokenShape = TINY_TOKENS,
    **options: Any,
) -> Tensor:
    with stage(shape) as generation:
        return generation(given() if given_BTHW is None else given_BTHW, seeds=seeds, **options)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_video_goes_on_from_the_tokens_it_was_given(frames: int, dtype: torch.dtype) -> None:
    begun = given(frames=frames)
    tokens = made(begun.to(dtype))
    assert tokens.shape == (2, *TINY_TOKENS.latent_THW) and tokens.dtype == torch.int64
    assert tokens.device == CPU and not tokens.is_floating_point()
    assert torch.equal(tokens[:, :frames], begun)
    assert tokens.min() >= 0 and tokens.max() < TINY_TOKENS.vocab_size


def test_tokens_are_in_the_order_of_frames_rows_and_columns() -> None:
    begun, sampling = given(frames=2), TokenSampling(0.9, top_p=None, top_k=8)
    in_order = generate(FakeTokenNetwork(), begun.flatten(1), num_tokens=30, sampling=sampling, seeds=(3, 4))
    assert torch.equal(made(begun, sampling=sampling)[:, 2:].flatten(1), in_order)


def test_tokens_are_drawn_as_released_where_nothing_is_said() -> None:
    assert torch.equal(made(), made(sampling=TokenSampling(1.0, top_p=0.8)))
    assert not torch.equal(made(), made(sampling=TokenSampling(1.0, top_p=0.1)))


def test_each_video_has_its_seed_and_none_sees_its_neighbour() -> None:
    both = made()
    for video, seed in enumerate((3, 4)):
        assert torch.equal(made(given()[video : video + 1], (seed,))[0], both[video])
    same = made(given()[:1].expand(2, -1, -1, -1))
    assert not torch.equal(same[0], same[1])


def test_a_network_with_text_begins_with_its_own_token_and_sees_the_text() -> None:
    text_BLD = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    tokens = made(shape=WITH_TEXT, text_BLD=text_BLD)
    assert tokens.shape == (2, *WITH_TEXT.latent_THW)
    network = FakeTokenNetwork(WITH_TEXT)
    begun = torch.cat([torch.full((2, 1), WITH_TEXT.vocab_size), given().flatten(1)], dim=1)
    expected = generate(
        network,
        begun,
        num_tokens=45,
        sampling=TokenSampling(),
        seeds=(3, 4),
        text=network.encode_text(text_BLD),
    )
    assert torch.equal(tokens[:, 1:].flatten(1), expected)
    assert not torch.equal(tokens, made(shape=WITH_TEXT, text_BLD=3 - text_BLD))


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (
            given(frames=4),
            r"do not begin a video of 4 latent frames: pass \[videos, frames, 3, 5\], with 1 to 3",
        ),
        (given()[:, :0], r"shape \(2, 0, 3, 5\)"),
        (given()[:0], r"shape \(0, 1, 3, 5\)"),
        (given()[0], r"shape \(1, 3, 5\)"),
        (given().flatten(1), r"shape \(2, 15\)"),
        (given().transpose(2, 3), r"shape \(2, 1, 5, 3\)"),
        (given().float(), "whole numbers, not torch.float32"),
        (given() > 3, "whole numbers, not torch.bool"),
        (
            given().index_fill(3, torch.tensor([4]), 60),
            "Token 60 is not one of the network's, which are 0 to 59",
        ),
        (given().index_fill(2, torch.tensor([1]), -1), "Token -1 is not"),
    ],
)
def test_tokens_that_begin_no_video_are_refused(begun: Tensor, words: str) -> None:
    with pytest.raises(PromptTokensError, match=words):
        made(begun)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        (TINY_TOKENS, {"seeds": (1,)}, "1 seeds for 2 videos: pass one for each"),
        (TINY_TOKENS, {"seeds": (1, 2, 3)}, "3 seeds for 2 videos"),
        (TINY_TOKENS, {"text_BLD": torch.zeros(2, 3, 6)}, "has no effect on this network: leave it out"),
        (WITH_TEXT, {}, "pass the text's embedding"),
        (WITH_TEXT, {"text_BLD": torch.zeros(1, 3, 6)}, r"pass \(2, 3, 6\)"),
    ],
)
def test_seeds_and_texts_that_do_not_fit_are_refused(
    shape: TokenShape, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PromptTokensError, match=words):
        made(shape=shape, **options)


def test_the_memory_beside_the_weights_grows_with_the_videos_drawn_together() -> None:
    one, three = (stage().work_bytes(videos) for videos in (1, 3))
    assert three == 3 * one > 3 * token_work(TINY_TOKENS)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    made(on_step=lambda done, total: told.append((done, total)))
    assert told == [(45, 45)]


def test_a_network_that_makes_nan_is_told_and_another_video_can_follow() -> None:
    with stage() as generation:
        expected = generation(given(), seeds=(3, 4))
        bias = generation.module.output.bias
        good = bias[0].item()
        bias[0] = float("nan")
        with pytest.raises(FloatingPointError, match="NaN or infinite after 0 drawn tokens"):
            generation(given(), seeds=(3, 4))
        bias[0] = good
        assert torch.equal(generation(given(), seeds=(3, 4)), expected)


def test_the_sentence_about_nan_says_which_token_it_was_and_what_to_do() -> None:
    frames = TINY_TOKENS.latent_THW[0]
    error, num_given = NotFiniteLogits(ROWS * COLUMNS + COLUMNS + 1, 1), ROWS * COLUMNS
    said = stage().sentence(error, num_given=num_given)
    position, total = 2 * ROWS * COLUMNS + COLUMNS + 2, frames * ROWS * COLUMNS
    assert f"token {position:,} of {total:,} (latent frame 2, row 1, column 1, from 0)" in said
    assert "in float32" in said and "weights absent are damaged: download or convert them again" in said


def test_a_parked_network_makes_the_same_tokens_again() -> None:
    generation = stage(offload=True)
    with generation:
        first = generation(given(), seeds=(3, 4))
    assert all(parameter.numel() == 0 for parameter in generation.module.parameters())
    with generation:
        assert torch.equal(generation(given(), seeds=(3, 4)), first)


def test_ranks_of_a_replica_take_its_first_ranks_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    group, sent = FakeGroup(2, 0), []

    def broadcast(drawn_B: Tensor, *, group: object, group_src: int) -> None:
        sent.append((drawn_B.tolist(), group, group_src))

    generation = stage(groups=replace(start_alone(CPU), replica=group))
    generation.module, generation._resident = FakeTokenNetwork(), True
    monkeypatch.setattr(dist, "broadcast", broadcast)
    tokens = generation(given(), seeds=(3, 4))
    assert sent == [(pair, group, 0) for pair in tokens[:, 1:].flatten(1).T.tolist()]
