r"""Whole videos through inference/general.py: seconds and peak memory per stage, load time, host memory.

python benchmarks/text2world.py ASSETS --runs "torch" "te --cp_size 2" -- --num_steps 35
python benchmarks/text2world.py ASSETS --model Cosmos-Predict2-2B-Video2World \
    --runs torch "torch --num_steps 4" -- --height 432 --width 768 --num_video_frames 81

Each run is one word for the back end, then flags of general.py; `ranks=N` in front starts N ranks with
torchrun. The flags after -- go to all. No guardrails, no upsampler. A Video2World goes on from --input, or
from a picture of the model's size that is drawn here. Host memory is the largest anonymous memory (RssAnon)
of a rank, sampled ten times a second: what the page cache holds does not count. PSNR is to the first run's
frames; videos of another size have none. The text encoder runs in the first run alone; the others find its
embeddings in the cache, and so does the first in a --cache that has them. A call is one of the denoiser, with
both branches of the guidance: the time from when the progress bar shows it to when it shows the next.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.door_runs import (
    ROOT,
    CallTimes,
    compare,
    drawn_picture,
    launched,
    own_and_shared,
    row_of,
    show,
    watched,
)
from cosmos_nemo.catalog import ModelCard, Task, find_card

GENERAL = ROOT / "inference/general.py"
PROMPT = "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot."


def main(argv: Sequence[str] | None = None) -> None:
    own, shared = own_and_shared(argv)
    args = parse(own)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shared = [*visual_flags(find_card(args.model), args.input, place), *shared]
        for number, run in enumerate(args.runs):
            rows.append(one_run(args, run, shared, place / f"{number}.npy"))
            compare(rows[-1], place / f"{number}.npy", place / "0.npy")
            show(rows[-1])
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--model", default="Cosmos-1.0-Diffusion-7B-Text2World")
    parser.add_argument("--runs", nargs="+", default=["torch", "te"])
    parser.add_argument("--input", type=Path, help="of a Video2World: the image or video to go on from")
    parser.add_argument("--cache", type=Path, help="where text embeddings are kept for other calls")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def visual_flags(card: ModelCard, given: Path | None, folder: Path) -> list[str]:
    if card.task is not Task.VIDEO2WORLD:
        return []
    path = given or folder / "input.png"
    if given is None:
        draw_picture(path, height=card.video.height, width=card.video.width)
    return ["--conditioned_image_or_video_path", str(path)]


def draw_picture(path: Path, *, height: int, width: int) -> None:
    Image.fromarray(drawn_picture(height=height, width=width)).save(path)


def command_of(args: argparse.Namespace, run: str, shared: list[str], video: Path) -> tuple[list[str], int]:
    """What starts the run, and how many ranks it has."""
    launcher, ranks, (backend, *flags) = launched(run)
    command = [
        *(*launcher, str(GENERAL), "--model", args.model, "--cosmos_assets_dir", str(args.assets)),
        *("--backend", backend, "--prompt", PROMPT, "--video_save_path", str(video), "--disable_guardrail"),
        *(*shared, *flags),
    ]
    return command, ranks


def one_run(args: argparse.Namespace, run: str, shared: list[str], video: Path) -> dict[str, Any]:
    command, ranks = command_of(args, run, shared, video)
    times, started = CallTimes(), time.perf_counter()
    cost = watched(command, ranks=ranks, cache=args.cache or video.parent, listen=times.note)
    row = row_of(video, model=args.model, run=run, cost=cost)
    first_seconds = None if times.first is None else times.first - started
    return {
        **row,
        "num_calls": times.num_calls,
        "call_seconds": times.seconds,
        "first_seconds": first_seconds,
    }


if __name__ == "__main__":
    main()
