from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.models.common.causal import Carry, zeros_before
from cosmos_nemo.models.wan_tokenizer.model import build_autoencoder
from cosmos_nemo.models.wan_tokenizer.streaming import _decode_piece, decode_pieces
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights

TINY = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 2, 2), num_res_blocks=1)
OTHERS = [
    WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 4, 3), num_res_blocks=2),
    WanTokenizerShape(channels=4, halves_time=(True, True, True), temporal_compression=8),
    WanTokenizerShape(channels=4, halves_time=(False, True, False), temporal_compression=2),
]
EVERY_CLIP = [(frames, size) for frames in (1, 2, 3, 5) for size in (1, 2, 3, 5) if size <= frames]
LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def built(shape: WanTokenizerShape = TINY, dtype: torch.dtype = torch.float32) -> Any:
    autoencoder = build_autoencoder(shape, device="cpu", dtype=dtype, parts=("decoder",))
    weights = random_weights(shape, seed=0, parts=("decoder",))
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])
    return autoencoder


def unsplit(autoencoder: Any, latent: Tensor) -> Tensor:
    """Of diffusers, whose decode clamps what is returned: with a hook on what it clamps."""
    kept: list[Tensor] = []
    hook = autoencoder.decoder.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    autoencoder._cached_conv_counts = {  # As counted by diffusers when both parts are there.
        "decoder": sum(isinstance(module, nn.Conv3d) for module in autoencoder.decoder.modules()),
        "encoder": 0,
    }
    autoencoder.decode(latent)
    hook.remove()
    return torch.cat(kept, dim=2)


def latent_of(frames: int, *, height: int = 4, width: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


def joined(autoencoder: Any, latent: Tensor, size: int) -> Tensor:
    return torch.cat(list(decode_pieces(autoencoder, latent, frames_per_piece=size)), dim=2)


@pytest.mark.parametrize(("frames", "size"), EVERY_CLIP)
def test_pieces_are_the_decode_of_diffusers(frames: int, size: int) -> None:
    """Compared in float64, where only diffusers' upsampling rounds, and near it in float32."""
    for dtype, most, average in ((torch.float64, 1e-6, 1e-7), (torch.float32, 5e-5, 2e-6)):
        autoencoder, latent = built(dtype=dtype), latent_of(frames).to(dtype)
        wanted = unsplit(autoencoder, latent)
        video = joined(autoencoder, latent, size)
        assert video.shape == wanted.shape == (1, 3, 4 * frames - 3, 32, 48)
        assert (video - wanted).abs().max() <= most * wanted.std()
        assert (video - wanted).abs().mean() <= average * wanted.std()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_are_near_the_decode_of_diffusers_in_bfloat16(size: int) -> None:
    autoencoder, latent = built(dtype=torch.bfloat16), latent_of(3)
    wanted, exact = unsplit(autoencoder, latent.bfloat16()).float(), unsplit(built(), latent)
    video = joined(autoencoder, latent.bfloat16(), size)
    assert video.dtype == torch.bfloat16
    assert (video.float() - exact).norm() <= 1.2 * (wanted - exact).norm()


@pytest.mark.parametrize("shape", OTHERS, ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_other_sizes_of_the_network_decode_in_pieces_too(shape: WanTokenizerShape, size: int) -> None:
    autoencoder, latent = built(shape, torch.float64), latent_of(4).double()
    wanted = unsplit(autoencoder, latent)
    video = joined(autoencoder, latent, size)
    assert video.shape == wanted.shape
    assert (video - wanted).abs().max() <= 1e-6 * wanted.std()


def test_a_batch_decodes_as_its_videos_alone() -> None:
    autoencoder, latent = built(), latent_of(3, batch=2)
    alone = torch.cat([joined(autoencoder, one, 2) for one in latent.split(1)])
    assert (joined(autoencoder, latent, 2) - alone).abs().max() <= 1e-5 * alone.std()


def test_the_first_piece_lacks_three_frames_and_a_last_one_may_be_short() -> None:
    pieces = decode_pieces(built(), latent_of(5), frames_per_piece=2)
    assert [piece.shape[2] for piece in pieces] == [5, 8, 4]


def test_a_change_shows_in_later_frames_only() -> None:
    autoencoder, latent = built(), latent_of(4)
    changed = latent.clone()
    changed[:, :, 3] += 1
    before, after = joined(autoencoder, latent, 2), joined(autoencoder, changed, 2)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_a_carry_is_two_frames_of_each_causal_convolution_and_keeps_no_piece_alive(
    frames: int, memory_format: torch.memory_format
) -> None:
    decoder, carry = built().decoder, Carry(zeros_before)
    _decode_piece(decoder, latent_of(frames).contiguous(memory_format=memory_format), carry)
    causal = {
        module
        for module in decoder.modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size != (1, 1, 1)
    }
    assert set(carry.frames) == causal
    for kept in carry.frames.values():
        assert kept.shape[2] == 2
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_decoding_leaves_the_latent_and_the_weights_as_they_were() -> None:
    autoencoder, latent = built(), latent_of(3)
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    kept = latent.clone()
    joined(autoencoder, latent, 2)
    assert torch.equal(latent, kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())


class Watch(TorchDispatchMode):
    """Writes down whether what convolutions get and give is channels last, and counts copies."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[bool] = []
        self.clones = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        if "convolution" in name:
            order = LAST if args[0].ndim == 5 else torch.channels_last
            self.convolutions += [x.is_contiguous(memory_format=order) for x in (args[0], result)]
        self.clones += name in ("clone", "contiguous", "_reshape_copy")
        return result


@pytest.mark.parametrize("size", [1, 3])
def test_channels_that_lie_together_stay_so_and_give_the_same_frames(size: int) -> None:
    decoder, hidden = built().decoder, latent_of(3)
    plain, last = Carry(zeros_before), Carry(zeros_before)
    for piece in hidden.split(size, dim=2):
        wanted = _decode_piece(decoder, piece, plain)
        doubles = [not last.is_first or piece.shape[2] > 1] * 2
        with Watch() as watch:
            video = _decode_piece(decoder, piece.contiguous(memory_format=LAST), last)
        assert (video - wanted).abs().max() <= 5e-5 * wanted.std()
        assert len(watch.convolutions) > 20 and all(watch.convolutions)
        # What is kept for the next piece, frames doubled, sizes doubled, and around the attention.
        assert watch.clones <= len(last.frames) + sum(doubles) + 3 + 2
        plain.is_first = last.is_first = False


def test_a_tokenizer_of_another_kind_is_no_wan_2_1() -> None:
    autoencoder = built()
    autoencoder.register_to_config(is_residual=True)
    with pytest.raises(AssertionError, match=r"Wan2\.2"):
        joined(autoencoder, latent_of(1), 1)
