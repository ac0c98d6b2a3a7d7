"""Runs of the inference doors as a person starts them, each in a process of its own, and what they cost.

Host memory is the largest anonymous memory (RssAnon) of a rank, sampled ten times a second: what the page
cache holds does not count. All else is from the manifest beside the video.
"""

import codecs
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy

ROOT = Path(__file__).parents[1]
GIB = 2**30
Listen = Callable[[str, float], None]
"""Told what a process says on its standard error, and when (time.perf_counter)."""

_MARK = re.compile(r"\| *(\d+)/(\d+) \[")
"""Of tqdm's bar."""


def own_and_shared(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A benchmark's own flags, and what follows `--`: flags of the door for all runs."""
    words = sys.argv[1:] if argv is None else list(argv)
    return (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])


def launched(run: str) -> tuple[list[str], int, list[str]]:
    """What starts a door's script, on how many ranks, and the words of the run after `ranks=N`."""
    words = run.split()
    ranks = int(words.pop(0).removeprefix("ranks=")) if words and words[0].startswith("ranks=") else 1
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=29511"]
    return launcher, ranks, words


def drawn_picture(*, height: int, width: int) -> numpy.ndarray:
    """uint8 [H, W, 3]: colours that run into each other, and a bright square, neither flat nor noise."""
    rows, columns = numpy.indices((height, width))
    picture = numpy.stack([255 * rows / height, 255 * columns / width, 128 + 0 * rows], axis=-1)
    picture[height // 3 : height // 2, width // 3 : width // 2] = 255
    return picture.astype(numpy.uint8)


def watched(
    command: list[str], *, ranks: int = 1, cache: Path, listen: Listen = lambda text, now: None
) -> dict[str, float]:
    """Seconds and host memory of a command, whose standard error is passed on; SystemExit if it fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "COSMOS_NEMO_CACHE": str(cache),
        "TQDM_MININTERVAL": "0",
    }
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    reader = threading.Thread(target=pass_on, args=(process.stderr, listen), daemon=True)
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid, ranks))
        time.sleep(0.1)
    wall_seconds = time.perf_counter() - started
    reader.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return {"wall_seconds": wall_seconds, "host_peak_gib": peak / GIB}


def row_of(video: Path, *, model: str, run: str, cost: dict[str, float]) -> dict[str, Any]:
    """What a run cost, with what its manifest says."""
    manifest = json.loads(video.with_suffix(".json").read_text())
    told = ("stages", "request", "plan", "backend", "device", "versions")
    return {"model": model, "run": run, **cost, **{name: manifest[name] for name in told}}


class CallTimes:
    """What a progress bar tells of the denoiser's calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        """Those of all samples together."""
        self.seconds: list[float] = []
        """From a call to the next of the same sample."""
        self.first: float | None = None
        """When the first one began."""
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
                self.first = self.first or now
                if call > 1:
                    self.seconds.append(now - self._when)
            self._last, self._when = call, now
        self._rest = self._rest[end:][-200:]


def pass_on(stream: IO[bytes], listen: Listen) -> None:
    """What a process says on its standard error, until it ends."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while data := os.read(stream.fileno(), 65536):
        text = decoder.decode(data)
        sys.stderr.write(text)
        sys.stderr.flush()
        listen(text, time.perf_counter())


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
    if row.get("call_seconds"):
        times = row["call_seconds"]
        print(
            f"  {row['num_calls']} denoiser calls, of which one takes {statistics.median(times):.3f} s "
            f"({min(times):.3f} - {max(times):.3f}); the first began after {row['first_seconds']:.1f} s"
        )
    for name, costs in row["stages"].items():
        print(
            f"  {name:<18}{costs['seconds']:8.1f} s, of which load {costs['load_seconds']:6.1f} s, "
            f"peak {costs['peak_bytes'] / GIB:6.1f} GiB, reserved {costs['peak_reserved_bytes'] / GIB:6.1f}"
        )
    sys.stdout.flush()
