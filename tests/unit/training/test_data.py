import numpy
import pytest
import torch

from cosmos_nemo.training.data import DataError, InMemory, sample_index

LATENTS = torch.arange(4.0)[:, None, None, None, None] + torch.zeros(4, 16, 2, 4, 6)
TEXTS = torch.arange(2.0)[:, None, None] + torch.zeros(2, 8, 3)


def in_memory(**changes: object) -> InMemory:
    fields = {
        "latents_NCTHW": LATENTS,
        "texts_MLD": TEXTS,
        "text_of_N": torch.tensor([0, 1, 1, 0]),
        "fps": 24.0,
    }
    return InMemory(**fields | changes)


def test_every_epoch_shows_every_sample_once() -> None:
    seen = [sample_index(7, seed=3, position=position) for position in range(21)]
    assert [sorted(seen[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(number: int, *, seed: int) -> list[int]:
        return [sample_index(50, seed=seed, position=number * 50 + entry) for entry in range(50)]

    assert len({tuple(epoch(number, seed=seed)) for number in (0, 1) for seed in (0, 1)}) == 4


def test_the_order_does_not_depend_on_the_order_of_asking() -> None:
    forward = [sample_index(5, seed=1, position=position) for position in range(40)]
    backward = [sample_index(5, seed=1, position=position) for position in reversed(range(40))]
    assert forward == backward[::-1]


def test_the_order_is_one_that_numpy_promises_to_keep() -> None:
    expected = numpy.random.RandomState([9, 2]).permutation(10)
    assert [sample_index(10, seed=9, position=20 + entry) for entry in range(10)] == expected.tolist()


def test_a_batch_has_the_clips_asked_for_and_their_texts() -> None:
    data = in_memory()
    batch = data.batch([2, 0, 1])
    assert batch.latent_BCTHW[:, 0, 0, 0, 0].tolist() == [2, 0, 1]
    assert batch.text_BLD[:, 0, 0].tolist() == [1, 0, 1]
    assert (batch.fps, len(data), data.latent_shape) == (24.0, 4, (16, 2, 4, 6))


@pytest.mark.parametrize("index", [-1, 4])
def test_a_number_that_no_clip_has_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 4"):
        in_memory().batch([0, index])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_NCTHW": LATENTS[0]}, r"are no \[N, C, T, H, W\]"),
        ({"texts_MLD": TEXTS[0]}, r"are no .* \[M, L, D\]"),
        ({"text_of_N": torch.tensor([0, 1])}, "4 clips, but 2 numbers"),
        ({"text_of_N": torch.tensor([0, 1, 2, 0])}, "from 0 to 2, but there are 2"),
        ({"text_of_N": torch.tensor([0, -1, 1, 0])}, "from -1 to 1"),
    ],
)
def test_clips_and_texts_that_do_not_fit_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        in_memory(**changes)
