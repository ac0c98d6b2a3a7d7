"""One rank of the text encoder's test: only rank 0 has the folder; then the cache holds the prompts; then
nobody has anything."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cosmos_nemo.stages.text_cache import TextCache
from cosmos_nemo.stages.text_encoder import TextEncoder

PROMPTS = ["a robot", "poor quality"]


def encoder(folder: Path, **options: object) -> TextEncoder:
    device = torch.device("cpu")
    return TextEncoder(folder=folder, text_length=32, text_dim=16, device=device, **options)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    group, rank = dist.group.WORLD, dist.get_rank()
    cache = TextCache(folder / f"cache{rank}")
    for run in range(2):
        stage = encoder(folder / ("t5" if rank == 0 else "absent"), group=group, cache=cache)
        with stage:
            text_BLD = stage(PROMPTS)
        assert (stage.module is None) == (rank != 0 or run == 1)
        torch.save(text_BLD, folder / f"text{rank}_{run}.pt")
    try:
        encoder(folder / "absent", group=group)(PROMPTS)
    except Exception as error:
        (folder / f"error{rank}").write_text(str(error))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's teardown at exit was seen to abort


if __name__ == "__main__":
    main(Path(sys.argv[1]))
