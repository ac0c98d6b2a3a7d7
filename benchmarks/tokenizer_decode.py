"""Video tokenizer: diffusers' unsplit decode against the decode in pieces, with random weights at full size.

python benchmarks/tokenizer_decode.py --frames 121 --height 704 --width 1280 --pieces 1 2 4 8 16
torchrun --nproc_per_node 8 benchmarks/tokenizer_decode.py --pieces 8

Under torchrun the ranks also decode a piece each at the same time, and the first one gathers the frames; the
doors do not do that yet. Prints seconds and peak GPU memory of each way (weights, latent and decoded floats
included; those of the first rank), and how far its uint8 frames are from the unsplit ones. Seconds are the
median of --repeats after one unmeasured run.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder, to_uint8
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, open_store, start, stop
from cosmos_nemo.parallel.neighbours import join_on_first
from cosmos_nemo.plan import Plan
from cosmos_nemo.tools.standin_tokenizer import random_weights

GIB = 2**30
UNSPLIT = "diffusers, unsplit"
Way = Callable[[], Iterator[Tensor]]
Row = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=121, help="frames of the video, 8k+1")
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument(
        "--pieces", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="latent frames per piece"
    )
    parser.add_argument("--channels", type=int, default=128, help="128 as released")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table here too")
    return parser.parse_args()


def build(shape: TokenizerShape, *, dtype: torch.dtype, seed: int) -> VideoTokenizer:
    autoencoder = build_autoencoder(shape, device="cuda", dtype=dtype, parts=("decoder",))
    weights = random_weights(shape, seed=seed, parts=("decoder",))
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])
    table_CT = torch.ones(shape.latent_channels, shape.statistics_frames, device="cuda")
    return VideoTokenizer(autoencoder, mean_CT=0 * table_CT, std_CT=table_CT)


def shared(tokenizer: VideoTokenizer, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
    """uint8 frames on the CPU of the first rank, from all ranks' pieces."""
    share_BCTHW = tokenizer.decode_share(latent_BCTHW, group=group)
    if share_BCTHW is None:
        side = tokenizer.autoencoder.config.spatial_compression_ratio
        height, width = (side * size for size in latent_BCTHW.shape[3:])
        mine_THWC = torch.empty(0, height, width, 3, dtype=torch.uint8, device=latent_BCTHW.device)
    else:
        mine_THWC = to_uint8(share_BCTHW)
    frames_THWC = join_on_first(mine_THWC, group)
    if frames_THWC is None:
        return None
    on_host = torch.empty(frames_THWC.shape, dtype=torch.uint8, pin_memory=True).copy_(frames_THWC)
    torch.cuda.synchronize()
    return on_host


def measure_shared(tokenizer: VideoTokenizer, latent_BCTHW: Tensor, group: ProcessGroup, repeats: int) -> Row:
    """Of this rank, and its frames; every rank begins at once."""
    frames_THWC, seconds = shared(tokenizer, latent_BCTHW, group), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        dist.barrier(group)
        torch.cuda.synchronize()
        started = time.perf_counter()
        frames_THWC = shared(tokenizer, latent_BCTHW, group)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / GIB
    return {"seconds": statistics.median(seconds), "peak_gib": peak, "frames": frames_THWC}


def frames_of(pieces: Iterator[Tensor], num_frames: int) -> Tensor:
    """The pieces as uint8 frames on the CPU, so that only one piece at a time is on the GPU."""
    frames_THWC = None
    start = 0
    for piece_BCTHW in pieces:
        levels_THWC = to_uint8(piece_BCTHW)
        if frames_THWC is None:
            frames_THWC = torch.empty(num_frames, *levels_THWC.shape[1:], dtype=torch.uint8, pin_memory=True)
        frames_THWC[start : start + len(levels_THWC)].copy_(levels_THWC, non_blocking=True)
        start += len(levels_THWC)
    assert frames_THWC is not None and start == num_frames
    torch.cuda.synchronize()
    return frames_THWC


def measure(way: Way, *, num_frames: int, repeats: int) -> tuple[Tensor, Row]:
    """The frames on the CPU, the seconds and the peak GiB."""
    frames_of(way(), num_frames)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        frames_THWC = frames_of(way(), num_frames)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / GIB
    return frames_THWC, {"seconds": statistics.median(seconds), "peak_gib": peak}


def compare(frames_THWC: Tensor, reference_THWC: Tensor) -> Row:
    """Largest difference in levels and the share of values that differ at all."""
    largest, differing = 0, 0
    for frame, reference in zip(frames_THWC, reference_THWC, strict=True):
        levels = (frame.cuda().int() - reference.cuda().int()).abs()
        largest, differing = max(largest, int(levels.max())), differing + int(levels.count_nonzero())
    return {"max_levels": largest, "differing": differing / frames_THWC.numel()}


def ways(tokenizer: VideoTokenizer, latent_BCTHW: Tensor, pieces: list[int]) -> dict[str, Way]:
    """The unsplit decode first, under UNSPLIT."""

    def unsplit() -> Iterator[Tensor]:
        with torch.no_grad():
            yield tokenizer.autoencoder.decode(latent_BCTHW).sample

    def in_pieces(size: int) -> Way:
        return lambda: tokenizer.decode_pieces(latent_BCTHW, frames_per_piece=size)

    return {UNSPLIT: unsplit} | {f"pieces of {size}": in_pieces(size) for size in pieces}


def random_latent(shape: TokenizerShape, arguments: argparse.Namespace) -> Tensor:
    """Unit normal [1, C, T, H, W] of the size that decodes to what the flags ask for."""
    frames = 1 + (arguments.frames - 1) // shape.temporal_compression
    height, width = (size // shape.spatial_compression for size in (arguments.height, arguments.width))
    draw = torch.Generator("cuda").manual_seed(arguments.seed)
    return torch.randn(1, shape.latent_channels, frames, height, width, generator=draw, device="cuda")


def measure_all(arguments: argparse.Namespace, groups: Groups) -> list[Row]:
    """On the first rank; of the others an empty list."""
    shape = TokenizerShape(channels=arguments.channels)
    dtype = getattr(torch, arguments.dtype)
    tokenizer = build(shape, dtype=dtype, seed=arguments.seed)
    latent_BCTHW = random_latent(shape, arguments).to(dtype)
    rows: list[Row] = []
    together = None
    if groups.world.size() > 1:
        together = measure_shared(tokenizer, latent_BCTHW, groups.world, arguments.repeats)
    if groups.rank > 0:
        return rows
    reference_THWC = None
    for name, way in ways(tokenizer, latent_BCTHW, arguments.pieces).items():
        try:
            frames_THWC, row = measure(way, num_frames=arguments.frames, repeats=arguments.repeats)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append({"way": name, "out_of_memory": True})
            continue
        if name == UNSPLIT:
            reference_THWC = frames_THWC
        elif reference_THWC is not None:
            row |= compare(frames_THWC, reference_THWC)
        rows.append({"way": name, **row})
    if together is not None:
        frames_THWC = together.pop("frames")
        difference = {} if reference_THWC is None else compare(frames_THWC, reference_THWC)
        rows.append({"way": f"{groups.world.size()} ranks", **together, **difference})
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| decode | seconds | peak GiB | largest uint8 difference | values that differ |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        if "out_of_memory" in row:
            lines.append(f"| {row['way']} | out of memory | | | |")
            continue
        difference = f"{row['max_levels']} | {row['differing']:.4%}" if "max_levels" in row else " | "
        lines.append(f"| {row['way']} | {row['seconds']:.3f} | {row['peak_gib']:.1f} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    arguments, ranks = parse(), ranks_from(os.environ)
    device = torch.device("cuda", ranks.local_rank)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=device)
    rows = measure_all(arguments, groups)
    stop()
    if ranks.rank > 0:
        return
    title = f"{arguments.frames}x{arguments.height}x{arguments.width}, {arguments.dtype}"
    print(f"{title}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"size": title, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
