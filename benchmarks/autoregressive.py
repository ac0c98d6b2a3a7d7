r"""Whole videos of the autoregressive models through inference/base.py, and the rows of their memory table.

python benchmarks/full_size_assets.py ASSETS --model Cosmos-Predict1-4B
python benchmarks/autoregressive.py ASSETS --model Cosmos-Predict1-4B --runs "" --rows 0 1 2 3 4 --json ROWS
python benchmarks/autoregressive.py ASSETS --model Cosmos-Predict1-4B --runs "--disable_diffusion_decoder" \
    "--offload_diffusion_decoder --offload_tokenizer" -- --backend torch

Videos go on from --input, or from nine frames of the model's size that are drawn here as an array, which
needs no ffmpeg; they are written as arrays too. Each run is a process of its own with flags of base.py
(`ranks=N` in front starts N ranks with torchrun); the flags after -- go to all, and to the rows. Without
guardrails. "work" is the seconds of all stages without their loading: from given frames to made ones.

--rows: the published table's, each of which offloads one more: 0 nothing, 1 guardrails, 2 and the diffusion
decoder, 3 and both tokenizers, 4 and the transformer. All of them have the guardrail, as published; its
models are made on the GPU at their released sizes, and find every frame safe. In this process, and shortened
where the peak does not depend on it: --tokens tokens of a video's are drawn, the rest are random, since the
cache of keys and values is a whole video's from the start, and reading the prompt takes more beside it than a
step does; and the decoder takes one step of fifteen. Peaks are those of the highest stage: allocated by
tensors, reserved by PyTorch's allocator, and nvidia-smi's.
"""

import argparse
import contextlib
import gc
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from benchmarks.door_runs import (
    GIB,
    ROOT,
    compare,
    drawn_picture,
    launched,
    own_and_shared,
    row_of,
    show,
    watched,
)
from benchmarks.offload_memory import FullVideoGuard, Smi
from cosmos_nemo.catalog import CARDS, ModelCard, find_card
from cosmos_nemo.cli import parse_autoregressive
from cosmos_nemo.job import Job, prepare
from cosmos_nemo.job.stages import pipeline_of
from cosmos_nemo.memory import predict, published_offloads
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.groups import Groups, start_alone, stop
from cosmos_nemo.parallel.startup import prepare_process
from cosmos_nemo.pipelines.autoregressive import Autoregressive
from cosmos_nemo.request import AutoregressiveRequest
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.token_generation import TokenGeneration

DOOR = ROOT / "inference/base.py"
NUM_GIVEN = 9
_OWN_FLAGS = ("--help", "--model", "--runs", "--rows", "--tokens", "--input", "--json")
PUBLISHED_GB = {
    "Cosmos-Predict1-4B": (31.3, 28.9, 28.5, 27.3, 18.7),
    "Cosmos-Predict1-12B": (47.5, 45.2, 43.1, 42.9, 27.4),
}
"""NVIDIA's, of the rows from 0 on."""


def main(argv: Sequence[str] | None = None) -> None:
    own, shared = own_and_shared(argv)
    args = parse(own)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shared = [*given_flags(find_card(args.model), args.input, place), "--disable_guardrail", *shared]
        for number, run in enumerate(args.runs):
            rows.append(one_run(args, run, shared, place, number))
            compare(rows[-1], place / f"{number}.npy", place / "0.npy")
            show(rows[-1])
            show_work(rows[-1])
            write_json(args.json, rows)
        if args.rows:
            for row in memory_rows(args, shared, place):
                rows.append(row)
                show_memory(row)
                write_json(args.json, rows)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name, card in CARDS.items() if card.has_diffusion_decoder]
    parser.add_argument("assets", type=Path)
    parser.add_argument("--model", default=names[0], choices=names, metavar="MODEL")
    parser.add_argument("--runs", nargs="*", default=[], help='flags of base.py in quotes; "" for none')
    parser.add_argument("--rows", nargs="*", type=int, default=[], choices=range(5))
    parser.add_argument("--tokens", type=int, default=64, help="drawn in each of the rows")
    parser.add_argument("--input", type=Path, help="the video to go on from")
    parser.add_argument("--json", type=Path, help="where all that is measured goes too")
    return parser.parse_args([_as_value(word) for word in argv])


def _as_value(word: str) -> str:
    """argparse takes a run of one flag for a flag of its own, unless there is a space in it."""
    is_run = word.startswith("--") and word.partition("=")[0] not in _OWN_FLAGS
    return f"{word} " if is_run else word


def given_flags(card: ModelCard, given: Path | None, folder: Path) -> list[str]:
    path = given or folder / "input.npy"
    if given is None:
        numpy.save(path, given_frames(height=card.video.height, width=card.video.width))
    return ["--input_image_or_video_path", str(path), "--num_input_frames", str(NUM_GIVEN)]


def given_frames(*, height: int, width: int) -> numpy.ndarray:
    """uint8 [9, H, W, 3]: a picture that moves to the right."""
    picture = drawn_picture(height=height, width=width)
    return numpy.stack([numpy.roll(picture, width * number // 64, axis=1) for number in range(NUM_GIVEN)])


def door_flags(args: argparse.Namespace) -> list[str]:
    return ["--checkpoint_dir", str(args.assets), "--ar_model_dir", args.model]


def one_run(
    args: argparse.Namespace, run: str, shared: list[str], folder: Path, number: int
) -> dict[str, Any]:
    launcher, ranks, flags = launched(run)
    video = folder / f"{number}.npy"
    places = ["--video_save_folder", str(folder), "--video_save_name", video.name]
    command = [*launcher, str(DOOR), *door_flags(args), *places, *shared, *flags]
    cost = watched(command, ranks=ranks, cache=folder)
    row = row_of(video, model=args.model, run=run.strip(), cost=cost)
    return {"kind": "video", **row, **work_of(row, find_card(args.model))}


def work_of(row: dict[str, Any], card: ModelCard) -> dict[str, float]:
    """Seconds without and of loading; tokens a second with the prompt and the graphs' captures included."""
    assert card.tokens is not None
    stages = row["stages"]
    seconds = {name: costs["seconds"] - costs["load_seconds"] for name, costs in stages.items()}
    given = (row["request"]["num_input_frames"] - 1) // card.tokens.tokenizer.temporal_compression + 1
    frames, rows, columns = card.tokens.network.latent_THW
    return {
        "work_seconds": sum(seconds.values()),
        "load_seconds": sum(costs["load_seconds"] for costs in stages.values()),
        "tokens_per_second": (frames - given) * rows * columns / seconds["token_generation"],
    }


def show_work(row: dict[str, Any]) -> None:
    print(
        f"  work {row['work_seconds']:.1f} s, loading {row['load_seconds']:.1f} s, "
        f"back end {row['backend']}, {row['tokens_per_second']:.1f} tokens/s",
        flush=True,
    )


class FewTokens(TokenGeneration):
    """Draws the first of the tokens that it should, and puts random ones for the others."""

    num_tokens = 64

    def __call__(
        self,
        given_BTHW: Tensor,
        *,
        seeds: Sequence[int],
        sampling: TokenSampling | None = None,
        text_BLD: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        assert text_BLD is None and self.module is not None
        given_BS = given_BTHW.flatten(1).cpu()
        batch_size, given = given_BS.shape
        left = self.shape.num_video_tokens - given
        drawn_BN = generate(
            self.module,  # type: ignore[arg-type]
            given_BS.to(self.device),
            num_tokens=min(left, self.num_tokens),
            sampling=sampling or TokenSampling(),
            seeds=seeds,
            on_step=on_step,
            use_graphs=self.use_graphs,
        )
        rest_BR = torch.randint(self.shape.vocab_size, (batch_size, left - drawn_BN.shape[1]))
        return torch.cat([given_BS, drawn_BN, rest_BR], dim=1).view(-1, *self.shape.latent_THW)


def memory_rows(args: argparse.Namespace, shared: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """A row each of the published table, one after the other."""
    prepare_process()
    places = ["--video_save_folder", str(folder), "--video_save_name", "row.npy"]
    flags = [*door_flags(args), *places, *shared, "--num_steps", "1"]
    job = prepare(parse_autoregressive(flags), ranks=Ranks(), environ=os.environ)
    groups = start_alone(job.device)
    for row in args.rows:
        offload = published_offloads(job.card)[row - 1] if row else frozenset[str]()
        gc.collect()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
        yield {
            "kind": "memory",
            "model": args.model,
            "row": row,
            **memory_row(job, groups, offload=offload, num_tokens=args.tokens),
            "published_gb": PUBLISHED_GB[args.model][row] if args.model in PUBLISHED_GB else None,
        }
    stop()


def memory_row(job: Job, groups: Groups, *, offload: frozenset[str], num_tokens: int) -> dict[str, Any]:
    pipeline = shortened(job, groups, offload=offload, num_tokens=num_tokens)
    with Smi() if job.device.type == "cuda" else contextlib.nullcontext() as smi:
        assert isinstance(job.request, AutoregressiveRequest)
        pipeline(job.request)
    costs = {stage.name: vars(stage.costs) for stage in pipeline.stages}
    return {
        "offload": sorted(offload),
        "backend": job.backend.name,
        "allocated": max(cost["peak_bytes"] for cost in costs.values()) / GIB,
        "reserved": max(cost["peak_reserved_bytes"] for cost in costs.values()) / GIB,
        "nvidia_smi": 0.0 if smi is None else smi.gib,
        "predicted": predict(job.card, offload=offload).peak / GIB,
        "stages": costs,
    }


def shortened(job: Job, groups: Groups, *, offload: frozenset[str], num_tokens: int) -> Autoregressive:
    """The job's pipeline with guardrail, and with a transformer that draws few tokens."""
    pipeline = pipeline_of(replace(job, setup=replace(job.setup, offload=offload)), groups)
    assert isinstance(pipeline, Autoregressive)
    whole = pipeline.token_generation
    pipeline.token_generation = FewTokens(
        shape=whole.shape,
        checkpoint=whole.checkpoint,
        groups=whole.groups,
        backend=whole.backend,
        device=whole.device,
        dtype=whole.dtype,
        use_graphs=whole.use_graphs,
        offload=whole.offload,
    )
    pipeline.token_generation.num_tokens = num_tokens
    pipeline.video_guard = FullVideoGuard(folder=Path(), device=job.device, offload="guardrails" in offload)
    return pipeline


def show_memory(row: dict[str, Any]) -> None:
    published = "none" if row["published_gb"] is None else f"{row['published_gb']:.1f} GB"
    print(
        f"{row['model']} row {row['row']} ({', '.join(row['offload']) or 'nothing'}): allocated "
        f"{row['allocated']:.1f}, reserved {row['reserved']:.1f}, nvidia-smi {row['nvidia_smi']:.1f} GiB, "
        f"predicted {row['predicted']:.1f}, published {published}"
    )
    for name, cost in row["stages"].items():
        print(
            f"  {name:<18}{cost['seconds']:8.1f} s, of which load {cost['load_seconds']:6.1f} s, "
            f"peak {cost['peak_bytes'] / GIB:6.1f} GiB, reserved {cost['peak_reserved_bytes'] / GIB:6.1f}"
        )
    print(end="", flush=True)


def write_json(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
