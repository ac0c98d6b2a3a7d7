"""One rank of the context parallel tests: both forms of attention, forward and backward, into a folder."""

import os
import sys
from pathlib import Path

import torch

from cosmos_nemo.models.common.attention import dot_product_attention
from cosmos_nemo.parallel.context import attend_by_gathering, attend_by_heads, gather_tokens, split_tokens
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan

FORMS = {"heads": attend_by_heads, "gathering": attend_by_gathering}
NUM_TOKENS, HEADS, WIDTH = 13, 6, 8


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(NUM_TOKENS, 2, HEADS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4)
    ]


def main(folder: Path) -> None:
    ranks = ranks_from(os.environ)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=torch.device("cpu"))
    cp = groups.collection.cp
    for name, form in FORMS.items():
        *qkv, weight = inputs()
        whole = [part.clone().requires_grad_() for part in qkv]
        shares = [split_tokens(part, cp) for part in whole]
        out = gather_tokens(form(dot_product_attention, *shares, cp, NUM_TOKENS), cp, NUM_TOKENS)
        (out * weight).sum().backward()
        gradients = [part.grad for part in whole]
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)  # each rank holds the part that its tokens saw
        torch.save([out.detach(), *gradients], folder / f"{name}_{ranks.num_ranks}_{ranks.rank}.pt")
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
