import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.model import build_autoencoder
from cosmos_nemo.training.nano import patches
from cosmos_nemo.training.nano.tokenizer_clips import object_mask, to_video
from cosmos_nemo.training.nano.world import TRAINED, draw_clips

SHAPE = TokenizerShape(channels=4, channel_multipliers=(1, 1, 1), num_res_blocks=1)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return draw_clips(TRAINED[:1], seed=0, device=torch.device("cpu"))


def test_the_basis_does_what_the_patchers_of_diffusers_do(clip: Tensor) -> None:
    autoencoder = build_autoencoder(SHAPE, device="cpu", dtype=torch.float32)
    basis_PP = patches.haar_basis(autoencoder)
    video = to_video(clip)
    made = patches.to_patches(patches.blocks_of(video), basis_PP)
    torch.testing.assert_close(made, autoencoder.encoder.patch_embed(video))
    blocks = patches.from_patches(made, basis_PP)
    torch.testing.assert_close(blocks, patches.blocks_of(video), atol=1e-5, rtol=0)
    torch.testing.assert_close(autoencoder.decoder.unpatch_embed(made), video, atol=1e-5, rtol=0)


def test_the_copies_of_the_first_frame_have_no_weight_and_objects_have_much(clip: Tensor) -> None:
    weight = patches.loss_weight(to_video(clip))
    assert weight[:, 0, ..., :48].eq(0).all() and weight[:, 0, ..., 48:].gt(0).all()
    mask = object_mask(to_video(clip))
    assert 0.01 < mask.mean() < 0.3
    assert weight[:, 1:].max() == 9 * weight[:, 1:].min()
