"""One rank of the video tokenizers' equality test: its piece of clips of several lengths."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.models.common.causal import RanksCarry, zeros_before
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.models.wan_tokenizer import model as wan_model
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer
from cosmos_nemo.models.wan_tokenizer.streaming import _decode_piece
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan, shares_of
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for
from cosmos_nemo.tools import standin_wan_tokenizer
from cosmos_nemo.tools.standin_tokenizer import random_weights

LENGTHS = (1, 2, 3, 5, 6)
SHAPE = TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), statistics_frames=6)
WAN_SHAPE = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 2, 2), num_res_blocks=1)


def tokenizer() -> VideoTokenizer:
    autoencoder = build_autoencoder(SHAPE, device="cpu", dtype=torch.float32, parts=("decoder",))
    weights = random_weights(SHAPE, seed=0, parts=("decoder",))
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])
    generator = torch.Generator().manual_seed(9)
    mean_CT = torch.randn(SHAPE.latent_channels, SHAPE.statistics_frames, generator=generator)
    return VideoTokenizer(autoencoder, mean_CT=mean_CT, std_CT=1 + mean_CT.abs())


def wan_tokenizer() -> WanTokenizer:
    autoencoder = wan_model.build_autoencoder(
        WAN_SHAPE, device="cpu", dtype=torch.float32, parts=("decoder",)
    )
    weights = standin_wan_tokenizer.random_weights(WAN_SHAPE, seed=0, parts=("decoder",))
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])
    mean_C = torch.randn(WAN_SHAPE.latent_channels, generator=torch.Generator().manual_seed(9))
    return WanTokenizer(autoencoder, mean_C=mean_C, std_C=1 + mean_C.abs())


TOKENIZERS: dict[str, Callable[[], VideoTokenizer | WanTokenizer]] = {
    "predict1": tokenizer,
    "wan": wan_tokenizer,
}


def stage_of(module: VideoTokenizer | WanTokenizer) -> AnyTokenizer:
    """The stage, entered."""
    shape = WAN_SHAPE if isinstance(module, WanTokenizer) else SHAPE
    stage = tokenizer_for(
        shape, folder=Path(), device=torch.device("cpu"), dtype=torch.float32, parts=("decoder",)
    )
    stage.module = module
    return stage


def wan_channels_last(tokenizer: WanTokenizer, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's piece by way of tensors that lie in memory as they do on a GPU."""
    lengths = shares_of(latent_BCTHW.shape[2], group.size(), least=2)
    assert all(lengths)
    raw_BCTHW = tokenizer._for_decoder(latent_BCTHW)
    hidden = tokenizer.autoencoder.post_quant_conv(raw_BCTHW).split(lengths, dim=2)[group.rank()]
    carry = RanksCarry(zeros_before, group, num_pieces=len(lengths))
    with torch.no_grad():
        return _decode_piece(
            tokenizer.autoencoder.decoder, hidden.contiguous(memory_format=torch.channels_last_3d), carry
        )


def latent_of(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(1, SHAPE.latent_channels, length, 4, 6, generator=generator)


def main(folder: Path) -> None:
    ranks = ranks_from(os.environ)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=torch.device("cpu"))
    for name, build in TOKENIZERS.items():
        shared = build()
        pieces = {length: shared.decode_share(latent_of(length), group=groups.replica) for length in LENGTHS}
        torch.save(pieces, folder / f"{name}_{ranks.rank}.pt")
        for length, piece in pieces.items():
            stage = stage_of(shared)
            many = stage.ranks_for(latent_of(length), groups.replica)
            assert stage.has_room(latent_of(length), groups.replica)
            assert (piece is not None) == (ranks.rank < many)
            if piece is None:
                continue
            frames = stage.decode_together(latent_of(length), groups.replica)
            assert (frames is None) == (ranks.rank > 0)
            if frames is not None:
                torch.save(frames, folder / f"{name}_frames_{length}.pt")
    piece = wan_channels_last(wan_tokenizer(), latent_of(LENGTHS[-1]), groups.replica)
    torch.save(piece, folder / f"channels_last_{ranks.rank}.pt")
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
