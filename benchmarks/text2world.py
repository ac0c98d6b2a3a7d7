"""Whole videos through inference/general.py: seconds and peak memory per stage, load time, host memory.

python benchmarks/text2world.py ASSETS --runs "torch" "te --cp_size 2" -- --num_steps 35

Each run is one word for the back end, then flags of general.py; `ranks=N` in front starts N ranks with
torchrun. The flags after -- go to all. Host memory is the largest anonymous memory (RssAnon) of a rank,
sampled ten times a second: what the page cache holds does not count. PSNR is to the first run's frames.
The text encoder runs in the first run alone; the others find its embeddings in the cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy

ROOT = Path(__file__).parents[1]
GENERAL = ROOT / "inference/general.py"
PROMPT = "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot."
GIB = 2**30


def main() -> None:
    argv = sys.argv[1:]
    own, shared = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--model", default="Cosmos-1.0-Diffusion-7B-Text2World")
    parser.add_argument("--runs", nargs="+", default=["torch", "te"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(own)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(args.runs):
            rows.append(one_run(args, run, shared, Path(folder) / f"{number}.npy"))
            compare(rows[-1], Path(folder) / f"{number}.npy", Path(folder) / "0.npy")
            show(rows[-1])
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))


def one_run(args: argparse.Namespace, run: str, shared: list[str], video: Path) -> dict[str, Any]:
    words = run.split()
    ranks = int(words.pop(0).removeprefix("ranks=")) if words[0].startswith("ranks=") else 1
    backend, flags = words[0], words[1:]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=29511"]
    command = [
        *(*launcher, str(GENERAL), "--model", args.model, "--cosmos_assets_dir", str(args.assets)),
        *("--backend", backend, "--prompt", PROMPT, "--video_save_path", str(video), *shared, *flags),
    ]
    started = time.perf_counter()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "COSMOS_NEMO_CACHE": str(video.parent),
    }
    process = subprocess.Popen(command, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid, ranks))
        time.sleep(0.1)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    manifest = json.loads(video.with_suffix(".json").read_text())
    return {
        "run": run,
        "wall_seconds": time.perf_counter() - started,
        "host_peak_gib": peak / GIB,
        "stages": manifest["stages"],
        "plan": manifest["plan"],
        "device": manifest["device"],
        "versions": manifest["versions"],
    }


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
    ours, theirs = (numpy.load(path).astype(numpy.float32) for path in (video, first))
    error = float(((ours - theirs) ** 2).mean())
    row["psnr_to_first"] = None if error == 0 else 10 * numpy.log10(255**2 / error).item()
    row["std_of_frames"] = float(ours.std())


def show(row: dict[str, Any]) -> None:
    psnr = "identical" if row["psnr_to_first"] is None else f"{row['psnr_to_first']:.1f} dB"
    print(f"{row['run']}: {row['wall_seconds']:.1f} s, host {row['host_peak_gib']:.1f} GiB, PSNR {psnr}")
    for name, costs in row["stages"].items():
        print(
            f"  {name:<13}{costs['seconds']:8.1f} s, of which load {costs['load_seconds']:6.1f} s, "
            f"peak {costs['peak_bytes'] / GIB:6.1f} GiB"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
