from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cosmos_nemo.stages.text_cache import TextCache
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.tools.standin_text import write_text_encoder

PROMPTS = ["a robot", "poor quality"]
WORLD = 2


def encoder(folder: Path, **options: object) -> TextEncoder:
    device = torch.device("cpu")
    return TextEncoder(folder=folder, text_length=32, text_dim=16, device=device, **options)


def encode_on_each_rank(rank: int, tmp_path: Path) -> None:
    """Only rank 0 has the folder; then the cache holds the prompts; then nobody has anything."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=WORLD, group_name="text"
    )
    group = dist.group.WORLD
    folder = tmp_path / "t5" if rank == 0 else tmp_path / "absent"
    cache = TextCache(tmp_path / f"cache{rank}")
    for run in range(2):
        stage = encoder(folder, group=group, cache=cache)
        with stage:
            text_BLD = stage(PROMPTS)
        assert (stage.module is None) == (rank != 0 or run == 1)
        torch.save(text_BLD, tmp_path / f"text{rank}_{run}.pt")
    try:
        encoder(tmp_path / "absent", group=group)(PROMPTS)
    except Exception as error:
        (tmp_path / f"error{rank}").write_text(str(error))
    dist.barrier()  # a rank that ends first was seen to abort the others' teardown
    dist.destroy_process_group()


def test_rank_0_encodes_and_every_rank_gets_its_embeddings_or_its_error(tmp_path: Path) -> None:
    write_text_encoder(tmp_path / "t5", text_dim=16, seed=0)
    mp.spawn(encode_on_each_rank, args=(tmp_path,), nprocs=WORLD)
    alone = encoder(tmp_path / "t5")
    expected = alone(PROMPTS)
    for rank in range(WORLD):
        for run in range(2):
            assert torch.equal(torch.load(tmp_path / f"text{rank}_{run}.pt"), expected)
        assert "absent" in (tmp_path / f"error{rank}").read_text()
    assert not (tmp_path / "cache1").exists() and len(list((tmp_path / "cache0").iterdir())) == 2
