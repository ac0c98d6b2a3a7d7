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
import codecs
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy
from PIL import Image

from cosmos_nemo.catalog import ModelCard, Task, find_card

ROOT = Path(__file__).parents[1]
GENERAL = ROOT / "inference/general.py"
PROMPT = "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot."
GIB = 2**30


_MARK = re.compile(r"\| *(\d+)/(\d+) \[")
"""Of tqdm's bar."""


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    own, shared = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
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
    """Colours that run into each other, and a bright square: neither flat nor noise."""
    rows, columns = numpy.indices((height, width))
    picture = numpy.stack([255 * rows / height, 255 * columns / width, 128 + 0 * rows], axis=-1)
    picture[height // 3 : height // 2, width // 3 : width // 2] = 255
    Image.fromarray(picture.astype(numpy.uint8)).save(path)


def command_of(args: argparse.Namespace, run: str, shared: list[str], video: Path) -> tuple[list[str], int]:
    """What starts the run, and how many ranks it has."""
    words = run.split()
    ranks = int(words.pop(0).removeprefix("ranks=")) if words[0].startswith("ranks=") else 1
    backend, flags = words[0], words[1:]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=29511"]
    command = [
        *(*launcher, str(GENERAL), "--model", args.model, "--cosmos_assets_dir", str(args.assets)),
        *("--backend", backend, "--prompt", PROMPT, "--video_save_path", str(video), "--disable_guardrail"),
        *(*shared, *flags),
    ]
    return command, ranks


def one_run(args: argparse.Namespace, run: str, shared: list[str], video: Path) -> dict[str, Any]:
    command, ranks = command_of(args, run, shared, video)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "COSMOS_NEMO_CACHE": str(args.cache or video.parent),
        "TQDM_MININTERVAL": "0",
    }
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    times = CallTimes()
    reader = threading.Thread(target=pass_on, args=(process.stderr, times), daemon=True)
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid, ranks))
        time.sleep(0.1)
    wall_seconds = time.perf_counter() - started
    reader.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    manifest = json.loads(video.with_suffix(".json").read_text())
    return {
        "model": args.model,
        "run": run,
        "wall_seconds": wall_seconds,
        "host_peak_gib": peak / GIB,
        "num_calls": times.num_calls,
        "call_seconds": times.seconds,
        "stages": manifest["stages"],
        "request": manifest["request"],
        "plan": manifest["plan"],
        "device": manifest["device"],
        "versions": manifest["versions"],
    }


class CallTimes:
    """What a progress bar tells of the denoiser's calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        """Those of all samples together."""
        self.seconds: list[float] = []
        """From a call to the next of the same sample."""
        self._last, self._when, self._rest = 0, 0.0, ""

    def note(self, text: str, now: float) -> None:
        """A bar may come in two pieces: what follows the last whole one is looked at again."""
        self._rest += text
        end = 0
        for found in _MARK.finditer(self._rest):
            end, call = found.end(), int(found[1])
            if call == self._last:
                continue
            if call == self._last + 1:
                self.num_calls += 1
                if call > 1:
                    self.seconds.append(now - self._when)
            self._last, self._when = call, now
        self._rest = self._rest[end:][-200:]


def pass_on(stream: IO[bytes], times: CallTimes) -> None:
    """What a process says on its standard error, until it ends."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while data := os.read(stream.fileno(), 65536):
        text = decoder.decode(data)
        sys.stderr.write(text)
        sys.stderr.flush()
        times.note(text, time.perf_counter())


def anonymous_bytes(pid: int, ranks: int) -> int:
    """RssAnon of the process, or of the fattest of its children when a launcher stands before them."""
    pids = [pid]
    if ranks > 1:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        pids = [int(child) for child in children.read_text().split()] if children.exists() else []
    return max((_rss_anon(one) for one in pids), default=0)


def _rss_anon(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def compare(row: dict[str, Any], video: Path, first: Path) -> None:
    """PSNR in dB: None if it is infinite, which JSON has no number for, or if the sizes differ."""
    ours, theirs = (numpy.load(path) for path in (video, first))
    row["frames"] = list(ours.shape)
    row["std_of_frames"] = float(ours.std(dtype=numpy.float32))
    row["is_identical"] = numpy.array_equal(ours, theirs)
    row["psnr_to_first"] = None
    if ours.shape == theirs.shape and not row["is_identical"]:
        error = float(((ours.astype(numpy.float32) - theirs) ** 2).mean())
        row["psnr_to_first"] = 10 * numpy.log10(255**2 / error).item()


def show(row: dict[str, Any]) -> None:
    psnr = "none" if row["psnr_to_first"] is None else f"{row['psnr_to_first']:.1f} dB"
    print(
        f"{row['model']}, {row['run']}: {row['wall_seconds']:.1f} s, host {row['host_peak_gib']:.1f} GiB, "
        f"frames {row['frames']}, PSNR {'identical' if row['is_identical'] else psnr}"
    )
    if row["call_seconds"]:
        times = row["call_seconds"]
        print(
            f"  {row['num_calls']} denoiser calls, of which one takes {statistics.median(times):.3f} s "
            f"({min(times):.3f} - {max(times):.3f})"
        )
    for name, costs in row["stages"].items():
        print(
            f"  {name:<13}{costs['seconds']:8.1f} s, of which load {costs['load_seconds']:6.1f} s, "
            f"peak {costs['peak_bytes'] / GIB:6.1f} GiB, reserved {costs['peak_reserved_bytes'] / GIB:6.1f}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
