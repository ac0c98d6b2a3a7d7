import numpy as np
import pytest
import torch

from cosmos_nemo.sampling.noise import draw_noise


def test_noise_is_numpys_for_the_same_seed():
    want = np.random.RandomState(7).standard_normal((1, 16, 3, 4, 5)).astype(np.float32)
    assert torch.equal(draw_noise((1, 16, 3, 4, 5), seed=7), torch.from_numpy(want))


def test_noise_is_a_function_of_shape_and_seed_alone():
    first = draw_noise((2, 3), seed=1)
    np.random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(first, draw_noise((2, 3), seed=1))
    assert not torch.equal(first, draw_noise((2, 3), seed=2))


def test_noise_leaves_the_global_generators_alone():
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    draw_noise((4,), seed=5)
    assert np.random.random_sample() == expected


def test_noise_is_float32_on_the_cpu():
    noise = draw_noise(torch.Size([2, 2]), seed=0)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(ValueError, match="Seed"):
        draw_noise((1,), seed=seed)
