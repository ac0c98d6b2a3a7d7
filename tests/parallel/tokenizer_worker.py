"""One rank of the video tokenizer's equality test: its piece of clips of several lengths."""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder, to_uint8
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.parallel.neighbours import join_on_first, pieces_of
from cosmos_nemo.plan import Plan
from cosmos_nemo.tools.standin_tokenizer import random_weights

LENGTHS = (1, 2, 3, 5, 6)
SHAPE = TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), statistics_frames=6)


def tokenizer() -> VideoTokenizer:
    autoencoder = build_autoencoder(SHAPE, device="cpu", dtype=torch.float32, parts=("decoder",))
    weights = random_weights(SHAPE, seed=0, parts=("decoder",))
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])
    generator = torch.Generator().manual_seed(9)
    mean_CT = torch.randn(SHAPE.latent_channels, SHAPE.statistics_frames, generator=generator)
    return VideoTokenizer(autoencoder, mean_CT=mean_CT, std_CT=1 + mean_CT.abs())


def latent_of(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(1, SHAPE.latent_channels, length, 4, 6, generator=generator)


def main(folder: Path) -> None:
    ranks = ranks_from(os.environ)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=torch.device("cpu"))
    shared = tokenizer()
    pieces = {length: shared.decode_share(latent_of(length), group=groups.replica) for length in LENGTHS}
    torch.save(pieces, folder / f"{ranks.rank}.pt")
    for length, piece in pieces.items():
        if piece is None:
            continue
        lengths = [8 * latents for latents in pieces_of(length, groups.replica, least=2) if latents]
        lengths[0] -= 7
        frames = join_on_first(to_uint8(piece), groups.replica, lengths=lengths)
        assert (frames is None) == (ranks.rank > 0)
        if frames is not None:
            torch.save(frames, folder / f"frames_{length}.pt")
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
