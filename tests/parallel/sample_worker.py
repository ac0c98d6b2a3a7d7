"""One rank of the equality tests: samples a latent under each plan that includes this rank, into a folder."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cosmos_nemo.catalog import CARDS, DiTShape
from cosmos_nemo.models.common.backend import Backend, fp8_backend, torch_backend
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.stages.denoise import Denoise

PLANS = (
    Plan(),
    Plan(cp=2),
    Plan(cp=3),
    Plan(cp=4),
    Plan(tp=2),
    Plan(cfg=2),
    Plan(cfg=2, cp=2),
    Plan(cp=2, tp=2),
    Plan(cfg=2, tp=2),
    Plan(replicas=2),
    Plan(replicas=2, cfg=2),
    Plan(replicas=2, cp=2),
    Plan(replicas=2, tp=2),
)
ROUNDED = (Plan(), Plan(cp=2), Plan(cp=3), Plan(cp=4), Plan(tp=2), Plan(cfg=2), Plan(cp=2, tp=2))
"""Those with --precision fp8 too. 4 heads divide by 2 and 4 ranks; with 3, keys and values are gathered."""
CARD = replace(
    CARDS["Cosmos-Nano-Text2World"],
    network=DiTShape(
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        ffn_hidden_size=256,
        adaln_lora_dim=16,
        text_dim=32,
        text_length=12,
        max_latent_frames=16,
        max_latent_height=32,
        max_latent_width=32,
    ),
)
# 5 x 5 x 5 tokens: no number of ranks from 2 to 4 divides 125.
REQUEST = Text2WorldRequest(prompt="x", height=80, width=80, num_frames=33, num_steps=4, seed=7)


def name_of(plan: Plan, precision: str = "") -> str:
    return f"{precision}replicas{plan.replicas}_cfg{plan.cfg}_cp{plan.cp}_tp{plan.tp}"


def main(folder: Path) -> None:
    torch.manual_seed(0)
    prompt_BLD, negative_BLD = torch.randn(2, 1, 12, 32)
    device, ranks = torch.device("cpu"), ranks_from(os.environ)
    store = open_store(ranks)
    runs: list[tuple[Plan, str, Backend]] = [(plan, "", torch_backend()) for plan in PLANS]
    runs += [(plan, "fp8", fp8_backend()) for plan in ROUNDED]
    for plan, precision, backend in runs:
        if ranks.rank >= plan.num_ranks:
            continue
        name = name_of(plan, precision)
        groups = start(ranks, plan=plan, store=torch.distributed.PrefixStore(name, store), device=device)
        stage = Denoise(
            card=CARD,
            checkpoint=folder / "checkpoint",
            groups=groups,
            backend=backend,
            device=device,
            dtype=torch.float32,
        )
        with stage as denoise:
            latent = denoise(REQUEST, prompt_BLD, negative_BLD)
        torch.save(latent, folder / f"{name}_rank{ranks.rank}.pt")
        torch.distributed.barrier()
        stop()
    # Rank 0 hosts the store, and must outlive the others' last use of it.
    store.add("done", 1)
    while ranks.rank == 0 and store.add("done", 0) < ranks.num_ranks:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
