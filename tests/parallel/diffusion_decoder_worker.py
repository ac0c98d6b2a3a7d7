"""One rank of the diffusion decoder's equality tests: latents under each plan that includes this rank."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cosmos_nemo.catalog import Family
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan
from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder
from tests.parallel.sample_worker import CARD, name_of

PLANS = (
    Plan(),
    Plan(cp=2),
    Plan(cp=3),
    Plan(tp=2),
    Plan(cfg=2),
    Plan(cfg=2, cp=2),
    Plan(cp=2, tp=2),
    Plan(cfg=2, tp=2),
    Plan(replicas=2, cfg=2),
)
SHAPE = replace(
    CARD.network,
    family=Family.TOKEN_DECODER,
    token_vocab=100,
    token_dim=8,
    rope_ratios_THW=(1.0, 1.5, 1.5),
)
# Two windows of 8 x 5 x 5 patches, which 3 ranks do not divide.
IDS_BTHW = torch.randint(100, (1, 9, 5, 5), generator=torch.Generator().manual_seed(0))


def main(folder: Path) -> None:
    device, ranks = torch.device("cpu"), ranks_from(os.environ)
    store = open_store(ranks)
    for plan in PLANS:
        if ranks.rank >= plan.num_ranks:
            continue
        groups = start(
            ranks, plan=plan, store=torch.distributed.PrefixStore(name_of(plan), store), device=device
        )
        stage = DiffusionDecoder(
            shape=SHAPE,
            checkpoint=folder / "decoder",
            groups=groups,
            backend=torch_backend(),
            device=device,
            dtype=torch.float32,
        )
        with stage as decode:
            latents = decode(IDS_BTHW, seed=7, num_steps=3)
        torch.save(latents, folder / f"{name_of(plan)}_rank{ranks.rank}.pt")
        torch.distributed.barrier()
        stop()
    # Rank 0 hosts the store, and must outlive the others' last use of it.
    store.add("done", 1)
    while ranks.rank == 0 and store.add("done", 0) < ranks.num_ranks:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
