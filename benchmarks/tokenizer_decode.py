"""Video tokenizers: diffusers' decode beside ours in pieces and on several ranks, with random weights.

python benchmarks/tokenizer_decode.py --pieces 8 16
python benchmarks/tokenizer_decode.py --kind wan --frames 93 --pieces 1 2
torchrun --nproc_per_node 8 benchmarks/tokenizer_decode.py --pieces 8

Under torchrun the ranks also decode a piece each at the same time, as the doors do. Prints seconds and peak
GPU memory of each way (weights, latent and decoded floats included; those of the first rank), and how far its
uint8 frames are from diffusers' and from those of our decode in float32. Seconds are the median of --repeats
after one unmeasured run; they end when the frames are in host memory.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from benchmarks.dit_forward import peak_bytes, start_counting, synchronize
from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.models.video_tokenizer import model as cosmos
from cosmos_nemo.models.wan_tokenizer import model as wan
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, open_store, start, stop
from cosmos_nemo.parallel.rank_zero import on_all
from cosmos_nemo.plan import Plan
from cosmos_nemo.stages.continuous_tokenizer import frames_of
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for
from cosmos_nemo.tools.standin_tokenizer import random_weights as random_cosmos_weights
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights as random_wan_weights

GIB = 2**30
UNSPLIT = "diffusers"
Way = Callable[[], Iterator[Tensor]]
Row = dict[str, Any]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("cosmos", "wan"), default="cosmos", help="CV8x8x8, or Wan2.1's")
    parser.add_argument("--frames", type=int, default=121, help="frames of the video, 8k+1 or 4k+1")
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--pieces", type=int, nargs="+", default=[8], help="latent frames per piece")
    parser.add_argument("--channels", type=int, help="as released")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="print where the time of the last one goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    arguments = parser.parse_args(argv)
    many = shape_of(arguments).temporal_compression
    if arguments.frames % many != 1:
        parser.error(f"--frames {arguments.frames}: this tokenizer makes {many}k+1 frames")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments, ranks = parse(argv), ranks_from(os.environ)
    cuda = arguments.device == "cuda"
    device = torch.device("cuda", ranks.local_rank) if cuda else torch.device("cpu")
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=device)
    with torch.inference_mode():
        rows = measure_all(arguments, groups, device)
    stop()
    if ranks.rank > 0:
        return
    title = f"{arguments.kind}, {arguments.frames}x{arguments.height}x{arguments.width}"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"{title}, {name}, torch {torch.__version__}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"size": title, "rows": rows}, indent=1))


def measure_all(arguments: argparse.Namespace, groups: Groups, device: torch.device) -> list[Row]:
    """On the first rank; of the others an empty list."""
    stage = stage_of(arguments, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    latent_BCTHW = random_latent(stage, arguments)
    together = None
    if groups.world.size() > 1:
        together = measure_together(stage, latent_BCTHW, groups.world, arguments.repeats)
    if groups.rank > 0:
        return []
    ways: dict[str, Way] = {UNSPLIT: lambda: unsplit(stage, latent_BCTHW)}
    for size in arguments.pieces:
        ways[f"pieces of {size}"] = partial(stage.module.decode_pieces, latent_BCTHW, frames_per_piece=size)
    exact_THWC = stage_of(arguments, torch.float32, device).decode(latent_BCTHW)
    rows, found = [], {}
    for name, way in ways.items():
        try:
            found[name], row = measure(way, arguments, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            row = {"out_of_memory": True}
        rows.append({"way": name, **row})
    if together is not None:
        name, seconds_and_peak = f"{stage.ranks_for(latent_BCTHW, groups.world)} ranks", together
        found[name] = seconds_and_peak.pop("frames")
        rows.append({"way": name, **seconds_and_peak})
    for row in rows:
        if row["way"] in found:
            row |= {"psnr_to_float32": psnr(found[row["way"]], exact_THWC)}
            if UNSPLIT in found:
                row |= {"psnr_to_unsplit": psnr(found[row["way"]], found[UNSPLIT])}
    if arguments.profile:
        profile([way for name, way in ways.items() if name in found][-1], arguments.frames)
    return rows


def shape_of(arguments: argparse.Namespace) -> TokenizerShape | WanTokenizerShape:
    shape = TokenizerShape() if arguments.kind == "cosmos" else WanTokenizerShape()
    return replace(shape, channels=arguments.channels) if arguments.channels else shape


def stage_of(arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> AnyTokenizer:
    """A stage that is resident, with random weights and statistics that change nothing."""
    shape = shape_of(arguments)
    stage = tokenizer_for(shape, folder=Path(), device=device, dtype=dtype, parts=("decoder",))
    ones = torch.ones(shape.latent_channels, device=device)
    if isinstance(shape, WanTokenizerShape):
        autoencoder = wan.build_autoencoder(shape, device=device, dtype=dtype, parts=("decoder",))
        fill(autoencoder, random_wan_weights(shape, seed=arguments.seed, parts=("decoder",)))
        stage.module = wan.WanTokenizer(autoencoder, mean_C=0 * ones, std_C=ones)
    else:
        autoencoder = cosmos.build_autoencoder(shape, device=device, dtype=dtype, parts=("decoder",))
        fill(autoencoder, random_cosmos_weights(shape, seed=arguments.seed, parts=("decoder",)))
        table_CT = ones[:, None].expand(-1, shape.statistics_frames)
        stage.module = cosmos.VideoTokenizer(autoencoder, mean_CT=0 * table_CT, std_CT=table_CT)
    return stage


def fill(autoencoder: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])


def random_latent(stage: AnyTokenizer, arguments: argparse.Namespace) -> Tensor:
    """Unit normal [1, C, T, H, W] of the size that decodes to what the flags ask for."""
    shape = stage.shape
    frames = 1 + (arguments.frames - 1) // shape.temporal_compression
    height, width = (size // shape.spatial_compression for size in (arguments.height, arguments.width))
    draw = torch.Generator(stage.device).manual_seed(arguments.seed)
    return torch.randn(1, shape.latent_channels, frames, height, width, generator=draw, device=stage.device)


def unsplit(stage: AnyTokenizer, latent_BCTHW: Tensor) -> Iterator[Tensor]:
    """diffusers' own decode; of Wan's tokenizer that goes from latent frame to latent frame."""
    yield stage.module.autoencoder.decode(latent_BCTHW.to(stage.dtype)).sample


def measure_together(
    stage: AnyTokenizer, latent_BCTHW: Tensor, group: ProcessGroup, repeats: int
) -> Row | None:
    """Seconds, peak and frames of the first rank; every rank begins at once. None if they do not do it."""
    ranks = stage.ranks_for(latent_BCTHW, group)
    if ranks == 1 or not on_all(stage.has_room(latent_BCTHW, group), group, stage.device):
        return None
    seconds, frames_THWC = [], None
    for _ in range(repeats + 1):
        start_counting(stage.device)
        synchronize(stage.device)
        dist.barrier(group)
        started = time.perf_counter()
        if group.rank() < ranks:
            frames_THWC = stage.decode_together(latent_BCTHW, group)
        seconds.append(time.perf_counter() - started)
    if group.rank() > 0:
        return None
    peak = peak_bytes(stage.device) / GIB
    return {"seconds": statistics.median(seconds[1:]), "peak_gib": peak, "frames": frames_THWC}


def measure(way: Way, arguments: argparse.Namespace, device: torch.device) -> tuple[Tensor, Row]:
    """The frames on the CPU, the seconds and the peak GiB."""
    frames_of(way(), arguments.frames)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    start_counting(device)
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        frames_THWC = frames_of(way(), arguments.frames)
        seconds.append(time.perf_counter() - started)
    peak = peak_bytes(device) / GIB
    return frames_THWC, {"seconds": statistics.median(seconds), "peak_gib": peak}


def psnr(frames_THWC: Tensor, exact_THWC: Tensor) -> float:
    """In dB; infinite for the same frames."""
    error = sum(
        float((frame.float() - exact.float()).square().mean(dtype=torch.float64))
        for frame, exact in zip(frames_THWC, exact_THWC, strict=True)
    )
    return 10 * math.log10(255**2 * len(exact_THWC) / error) if error else math.inf


def profile(way: Way, count: int) -> None:
    from torch.profiler import ProfilerActivity

    where = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.profiler.profile(activities=[getattr(ProfilerActivity, where.upper())]) as found:
        frames_of(way(), count)
    print(found.key_averages().table(sort_by=f"{where}_time_total", row_limit=20, max_name_column_width=70))


def table(rows: list[Row]) -> str:
    lines = [
        "| decode | seconds | peak GiB | PSNR to diffusers' | to float32 |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        if "out_of_memory" in row:
            lines.append(f"| {row['way']} | out of memory | | | |")
            continue
        others = " | ".join(f"{row.get(key, math.nan):.1f}" for key in ("psnr_to_unsplit", "psnr_to_float32"))
        lines.append(f"| {row['way']} | {row['seconds']:.3f} | {row['peak_gib']:.1f} | {others} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
