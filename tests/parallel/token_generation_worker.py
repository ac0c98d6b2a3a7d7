"""One rank of the token test: two ranks whose networks disagree, and one whose network breaks."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan
from cosmos_nemo.stages.token_generation import TokenGeneration
from tests.token_network import TINY_TOKENS, FakeTokenNetwork

WORLD, SEEDS = 2, (3, 4)


class RanksThatDisagree(TokenGeneration):
    """Each rank's network has other weights than the one before it."""

    def _build(self) -> nn.Module:
        return FakeTokenNetwork(self.shape, seed=self.groups.rank)


def given() -> Tensor:
    return torch.randint(60, (2, 1, 3, 5), generator=torch.Generator().manual_seed(0))


def main(folder: Path) -> None:
    device, ranks = torch.device("cpu"), ranks_from(os.environ)
    groups = start(ranks, plan=Plan(tp=WORLD), store=open_store(ranks), device=device)
    stage = RanksThatDisagree(
        shape=TINY_TOKENS,
        checkpoint=folder,
        groups=groups,
        backend=torch_backend(),
        device=device,
        dtype=torch.float32,
    )
    with stage as generation:
        torch.save(generation(given(), seeds=SEEDS), folder / f"tokens{groups.rank}.pt")
        if groups.rank == 0:
            generation.module.output.bias[0] = float("nan")  # type: ignore[union-attr]
        try:
            generation(given(), seeds=SEEDS)
        except FloatingPointError as error:
            (folder / f"error{groups.rank}").write_text(str(error))
    dist.barrier()
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo's teardown at exit was seen to abort
