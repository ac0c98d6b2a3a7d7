"""One of two tensor parallel ranks: whether Megatron's loader gives it the bits that our reader gives it."""

import os
import sys
from pathlib import Path

import torch
from megatron.core import dist_checkpointing

from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.model import build_token_transformer
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import open_store, start, stop
from cosmos_nemo.plan import Plan
from tests.tiny_tokens import TEXT
from tests.unit.checkpoint.conftest import SHAPE

RANKS = 2
NETWORKS = ("tokens", "diffusion")


@torch.no_grad()
def main(folder: Path) -> None:
    device, ranks = torch.device("cpu"), ranks_from(os.environ)
    store = open_store(ranks)
    groups = start(ranks, plan=Plan(tp=RANKS), store=store, device=device)
    for kind in NETWORKS:
        checkpoint = open_checkpoint(folder / kind)
        made = {
            "backend": torch_backend(),
            "pg_collection": groups.collection,
            "device": device,
            "dtype": torch.float32,
        }
        if kind == "tokens":
            network = build_token_transformer(TEXT, **made)
            rules = token_rules(TEXT, checkpoint, tensor_parallel_size=RANKS)
        else:
            network = build_network(SHAPE, **made)
            rules = network_rules(SHAPE, checkpoint)
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
        state = network.sharded_state_dict(prefix="module.")
        found = dist_checkpointing.load(state, str(folder / kind / "weights"))
        load_into(
            network,
            checkpoint=checkpoint,
            rules=rules,
            tensor_parallel_rank=ranks.rank,
            tensor_parallel_size=RANKS,
        )
        ours = {f"module.{name}": parameter for name, parameter in network.named_parameters()}
        assert found.keys() == ours.keys()
        different = [name for name in ours if not torch.equal(found[name], ours[name])]
        print(f"{kind}: {len(ours)} tensors, different: {different}", flush=True)
        torch.distributed.barrier()
    stop()
    # Rank 0 hosts the store, and must outlive the other's last use of it.
    store.add("done", 1)
    while ranks.rank == 0 and store.add("done", 0) < RANKS:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
