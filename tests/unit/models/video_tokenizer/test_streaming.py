from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.common.causal import Carry, repeat_first
from cosmos_nemo.models.video_tokenizer import streaming
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.models.video_tokenizer.streaming import _after_middle, decode_pieces

Build = Callable[..., nn.Module]
EVERY_CLIP = [(frames, size) for frames in (1, 2, 3, 5) for size in (1, 2, 3, 5) if size <= frames]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def latent_of(frames: int, *, height: int = 4, width: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


def joined(autoencoder: nn.Module, latent: Tensor, size: int) -> Tensor:
    return torch.cat(list(decode_pieces(autoencoder, latent, frames_per_piece=size)), dim=2)


@pytest.mark.parametrize(("frames", "size"), EVERY_CLIP)
def test_pieces_are_the_unsplit_decode_in_float32(
    frames: int, size: int, tiny: TokenizerShape, ours: Build, theirs: Build
) -> None:
    latent = latent_of(frames)
    unsplit = theirs(tiny).decode(latent).sample
    video = joined(ours(tiny), latent, size)
    assert video.shape == unsplit.shape == (1, 3, 8 * frames - 7, 32, 48)
    assert (video - unsplit).abs().max() <= 1e-5 * unsplit.std()


@pytest.mark.parametrize(("frames", "size"), EVERY_CLIP)
def test_pieces_in_bfloat16_are_as_near_to_float32_as_the_unsplit_decode(
    frames: int, size: int, tiny: TokenizerShape, ours: Build, theirs: Build
) -> None:
    """Not the same: the two round in other places."""
    latent = latent_of(frames).bfloat16()
    exact = to_uint8(theirs(tiny).decode(latent.float()).sample).float()
    unsplit = to_uint8(theirs(tiny, torch.bfloat16).decode(latent).sample).float()
    found = to_uint8(joined(ours(tiny, torch.bfloat16), latent, size)).float()
    assert exact.std() > 20
    assert (found - unsplit).abs().max() <= 8
    assert (found - exact).abs().mean() < 1.1 * (unsplit - exact).abs().mean() < 1


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 2},
        {"patch_size": 2, "spatial_compression": 4, "temporal_compression": 4},
        {"spatial_compression": 16},
        {"temporal_compression": 4, "num_res_blocks": 1},
    ],
    ids=lambda change: ", ".join(f"{name} {value}" for name, value in change.items()),
)
def test_other_sizes_of_the_network_decode_in_pieces_too(
    change: dict[str, int], tiny: TokenizerShape, ours: Build, theirs: Build
) -> None:
    shape = replace(tiny, **change)
    latent = latent_of(4)
    unsplit = theirs(shape).decode(latent).sample
    for size in (1, 3):
        video = joined(ours(shape), latent, size)
        assert video.shape == unsplit.shape
        assert (video - unsplit).abs().max() <= 1e-5 * unsplit.std()


def test_a_batch_decodes_as_its_videos_alone(tiny: TokenizerShape, ours: Build) -> None:
    latent = latent_of(3, batch=2)
    autoencoder = ours(tiny)
    both = joined(autoencoder, latent, 2)
    alone = torch.cat([joined(autoencoder, one, 2) for one in latent.split(1)])
    assert (both - alone).abs().max() <= 1e-5 * alone.std()


def test_the_first_piece_lacks_seven_frames_and_a_last_one_may_be_short(
    tiny: TokenizerShape, ours: Build
) -> None:
    pieces = decode_pieces(ours(tiny), latent_of(5), frames_per_piece=2)
    assert [piece.shape[2] for piece in pieces] == [9, 16, 8]


def test_pieces_are_made_one_at_a_time(tiny: TokenizerShape, ours: Build) -> None:
    autoencoder = ours(tiny)
    calls = []
    autoencoder.decoder.up_blocks[0].resnets[0].norm1.norm.register_forward_hook(lambda *_: calls.append(1))
    pieces = decode_pieces(autoencoder, latent_of(4), frames_per_piece=1)
    next(pieces)
    assert len(calls) == 1
    assert len(list(pieces)) == 3 and len(calls) == 4


def test_a_change_shows_in_later_frames_only(tiny: TokenizerShape, ours: Build) -> None:
    autoencoder, latent = ours(tiny), latent_of(4)
    changed = latent.clone()
    changed[:, :, 3] += 1
    before, after = joined(autoencoder, latent, 2), joined(autoencoder, changed, 2)
    assert torch.equal(before[:, :, :17], after[:, :, :17])
    assert not torch.equal(before[:, :, 17:], after[:, :, 17:])


def test_a_carry_is_two_frames_of_each_causal_convolution_and_keeps_no_piece_alive(
    tiny: TokenizerShape, ours: Build
) -> None:
    decoder = ours(tiny).decoder
    carry = Carry(repeat_first)
    hidden = torch.randn(1, 16, 4, 4, 6)
    _after_middle(decoder, hidden, carry)
    causal = (
        {module for module in decoder.modules() if getattr(module, "kernel_size", None) == (3, 1, 1)}
        - set(decoder.mid_block.modules())
        - {decoder.conv_in.conv_t}
    )
    assert set(carry.frames) == causal
    for frames in carry.frames.values():
        assert frames.shape[2] == 2
        assert frames.untyped_storage().nbytes() == frames.numel() * frames.element_size()


def test_decoding_leaves_the_latent_and_the_weights_as_they_were(tiny: TokenizerShape, ours: Build) -> None:
    autoencoder, latent = ours(tiny), latent_of(3)
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    kept = latent.clone()
    joined(autoencoder, latent, 2)
    assert torch.equal(latent, kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())


@pytest.mark.parametrize(("frames", "size"), [(1, 1), (3, 1), (4, 3)])
def test_channels_that_lie_together_stay_so_and_give_the_same_frames(
    frames: int, size: int, tiny: TokenizerShape, ours: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: what convolutions and norms get, from the latent to what is unpatched."""
    autoencoder, latent = ours(tiny), latent_of(frames)
    plain = joined(autoencoder, latent, size)
    monkeypatch.setattr(
        streaming, "for_convolutions", lambda x: x.contiguous(memory_format=torch.channels_last_3d)
    )
    with WatchMemory() as watch:
        found = joined(autoencoder, latent, size)
    assert (found - plain).abs().max() <= 1e-5 * plain.std()
    assert len(watch.convolutions) > 20 and all(watch.convolutions[1:])  # the first makes what is laid out


class WatchMemory(TorchDispatchMode):
    """Whether what convolutions get is channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "conv" in func.overloadpacket.__name__:
            self.convolutions.append(args[0].is_contiguous(memory_format=torch.channels_last_3d))
        return func(*args, **(kwargs or {}))
