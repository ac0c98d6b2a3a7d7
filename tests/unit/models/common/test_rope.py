import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.models.common.rope import apply_rope, rope_angles

GOLDEN = Path(__file__).parents[3] / "golden" / "predict1_rope_fullsize.safetensors"
RATIOS = {"7b": (2.0, 1.0, 1.0), "14b": (2.0, 2.0, 2.0)}
PLAIN = {"head_dim": 16, "ratios_THW": (1.0, 1.0, 1.0), "fps": 24.0, "base_fps": 24.0}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.mark.parametrize("form", ["f32", "bf16"])
@pytest.mark.parametrize("fps", [24, 30])
@pytest.mark.parametrize("model", RATIOS)
def test_full_size_angles_are_those_of_the_released_networks(model, fps, form, golden):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[form]
    angles = rope_angles(
        (16, 44, 80), head_dim=128, ratios_THW=RATIOS[model], fps=fps, base_fps=24.0, dtype=dtype
    )
    assert angles.shape == (16 * 44 * 80, 1, 1, 128)
    assert angles.dtype == torch.float32
    angles_THWK = angles.reshape(16, 44, 80, 128)
    name = f"outputs.{model}_fps{fps}_{form}"
    for axis, got in (
        ("t", angles_THWK[:, 0, 0]),
        ("h", angles_THWK[0, :, 0]),
        ("w", angles_THWK[0, 0, :]),
    ):
        torch.testing.assert_close(got, golden[f"{name}.{axis}_axis"], rtol=0, atol=1e-5)


def test_tokens_run_over_columns_first_then_rows_then_frames():
    angles = rope_angles((2, 3, 4), **PLAIN)[:, 0, 0]
    # head_dim 16: 4 frequencies of t, then 2 of h, then 2 of w; the first of each axis is 1.
    t, h, w = angles[:, 0], angles[:, 4], angles[:, 6]
    assert t.tolist() == [0.0] * 12 + [1.0] * 12
    assert h.tolist() == ([0.0] * 4 + [1.0] * 4 + [2.0] * 4) * 2
    assert w.tolist() == [0.0, 1.0, 2.0, 3.0] * 6


def test_the_second_half_repeats_the_first():
    angles = rope_angles((2, 3, 4), **PLAIN)
    assert torch.equal(angles[..., :8], angles[..., 8:])


def test_frequencies_fall_by_powers_of_the_stretched_base():
    angles = rope_angles((2, 1, 1), **PLAIN | {"ratios_THW": (2.0, 1.0, 1.0)})[1, 0, 0, :4]
    base = 10000 * 2 ** (8 / 6)
    assert angles.tolist() == pytest.approx([base ** (-2 * j / 8) for j in range(4)])


def test_half_the_frame_rate_doubles_the_time_angles_and_leaves_the_others():
    slow, base = (rope_angles((3, 2, 2), **PLAIN | {"fps": fps})[:, 0, 0] for fps in (12.0, 24.0))
    torch.testing.assert_close(slow[:, :4], 2 * base[:, :4])
    assert torch.equal(slow[:, 4:8], base[:, 4:8])


def test_a_single_frame_needs_no_frame_rate():
    assert torch.equal(rope_angles((1, 2, 3), **PLAIN | {"fps": None}), rope_angles((1, 2, 3), **PLAIN))


@pytest.mark.parametrize(
    ("grid", "change", "message"),
    [
        ((2, 1, 1), {"fps": 0.0}, "fps 0.0"),
        ((2, 1, 1), {"fps": float("nan")}, "fps nan"),
        ((2, 0, 1), {}, "empty"),
        ((2, 1, 1), {"head_dim": 15}, "head_dim 15"),
        ((2, 1, 1), {"head_dim": 10}, "head_dim 10"),
    ],
)
def test_what_has_no_table_is_refused(grid, change, message):
    with pytest.raises(ValueError, match=message):
        rope_angles(grid, **PLAIN | change)


def textbook(x, angles):
    half = x.shape[-1] // 2
    x = x.float() if x.dtype == torch.bfloat16 else x
    rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angles.cos() + rotated * angles.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_the_half_split_one_rounded_once_to_the_dtype_of_x(dtype):
    angles = rope_angles((2, 3, 4), **PLAIN)
    x = torch.randn(24, 2, 3, 16).to(dtype)
    got = apply_rope(x, angles.cos(), angles.sin())
    assert got.dtype == dtype
    half_a_bit = torch.finfo(dtype).eps / 2
    exact = textbook(x.double(), angles.double())
    torch.testing.assert_close(got.double(), exact, rtol=1.001 * half_a_bit, atol=1e-6)


def test_rotation_keeps_norms_and_depends_on_differences_of_position_alone():
    angles = rope_angles((1, 1, 8), **PLAIN | {"fps": None})
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 8, 1, 1, 16)
    q, k = (apply_rope(x, angles.double().cos(), angles.double().sin())[:, 0, 0] for x in (q, k))
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[:1].expand(8))
    scores = q @ k.T
    torch.testing.assert_close(scores[2, 0], scores[7, 5], rtol=0, atol=1e-6)
    assert not math.isclose(scores[2, 0], scores[2, 1], abs_tol=1e-3)


def test_rotation_works_on_a_slice_of_a_larger_tensor_and_leaves_it_alone():
    angles = rope_angles((1, 2, 3), **PLAIN)
    qkv = torch.randn(6, 1, 2, 48)
    before = qkv.clone()
    got = apply_rope(qkv[..., 16:32], angles.cos(), angles.sin())
    torch.testing.assert_close(got, textbook(before[..., 16:32], angles))
    assert torch.equal(qkv, before)


def test_gradients_are_those_of_the_formula():
    angles = rope_angles((1, 2, 3), **PLAIN).double()
    x = torch.randn(6, 1, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, angles.cos(), angles.sin()), x)


@pytest.mark.gpu
def test_rotation_on_a_gpu_is_that_of_the_cpu():
    angles = rope_angles((2, 3, 4), **PLAIN)
    x = torch.randn(24, 2, 3, 16).bfloat16()
    want = apply_rope(x, angles.cos(), angles.sin())
    got = apply_rope(x.cuda(), angles.cos().cuda(), angles.sin().cuda()).cpu()
    torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-6)
