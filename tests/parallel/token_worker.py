"""One rank of the token transformer's equality tests: under each number of tensor parallel ranks that
includes this one, from each layout, the logits of videos read at once and token by token, into a folder."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.model import build_token_transformer
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, open_store, start, stop
from cosmos_nemo.plan import Plan
from tests.tiny_tokens import SCALED, TEXT, decode_all, random_text, random_tokens

SIZES = (1, 2, 4)
SHAPES = {
    "scaled": replace(SCALED, num_heads=8, num_kv_heads=4),
    "text": replace(TEXT, num_heads=8, num_kv_heads=4),
}
LAYOUTS = ("nemo", "released")
PROMPT = 7


def logits_of(shape: TokenShape, checkpoint_dir: Path, groups: Groups) -> dict[str, Tensor]:
    checkpoint, tp, cpu = open_checkpoint(checkpoint_dir), groups.collection.tp, torch.device("cpu")
    network = build_token_transformer(
        shape, backend=torch_backend(), pg_collection=groups.collection, device=cpu, dtype=torch.float32
    )
    load_into(
        network,
        checkpoint=checkpoint,
        rules=token_rules(shape, checkpoint, tensor_parallel_size=tp.size()),
        tensor_parallel_rank=tp.rank(),
        tensor_parallel_size=tp.size(),
    )
    tokens, text = random_tokens(shape, batch=2), random_text(network, batch=2)
    cache = network.new_cache(2)
    assert cache.k.shape[3] == shape.num_kv_heads // tp.size()
    return {
        "at_once": network(tokens, text=text),
        "one_by_one": decode_all(network, tokens, prompt=PROMPT, text=text, cache=cache),
    }


def name_of(kind: str, layout: str, size: int, rank: int) -> str:
    return f"{kind}_{layout}_tp{size}_rank{rank}.pt"


def main(folder: Path) -> None:
    device, ranks = torch.device("cpu"), ranks_from(os.environ)
    store = open_store(ranks)
    for size in SIZES:
        if ranks.rank >= size:
            continue
        own = torch.distributed.PrefixStore(f"tp{size}", store)
        groups = start(ranks, plan=Plan(tp=size), store=own, device=device)
        for kind, shape in SHAPES.items():
            for layout in LAYOUTS:
                with torch.no_grad():
                    logits = logits_of(shape, folder / f"{kind}_{layout}", groups)
                torch.save(logits, folder / name_of(kind, layout, size, ranks.rank))
        torch.distributed.barrier()
        stop()
    # Rank 0 hosts the store, and must outlive the others' last use of it.
    store.add("done", 1)
    while ranks.rank == 0 and store.add("done", 0) < ranks.num_ranks:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
