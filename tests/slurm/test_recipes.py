"""What `nemo cosmos ... executor=slurm` writes, submitted as it is: two nodes of two ranks."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tests.parallel.launcher import clean_environment
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

_NEMO = (sys.executable, "-c", "from nemo_run.__main__ import app; app()")
_GENERATE = ("cosmos", "generate", "--factory", "cosmos_nano_text2world")
_SLURM = ("executor=slurm", "executor.account=me", "executor.nodes=2", "executor.ntasks_per_node=2")
_SMALL = ("request.height=32", "request.width=48", "request.num_frames=9")


def nemo(cluster: Cluster, folder: Path, *words: str) -> str:
    """What `nemo cosmos generate WORDS` prints, where Slurm's programs are those of the cluster."""
    done = subprocess.run(
        [*_NEMO, *_GENERATE, *words, *_SLURM],
        cwd=folder,
        env={**clean_environment(), **cluster.environment, "NEMORUN_HOME": str(folder / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script_of(cluster: Cluster, folder: Path, *words: str) -> str:
    """The batch script of a dry run."""
    said = nemo(cluster, folder, *words, "--dryrun")
    [line] = [line for line in said.splitlines() if line.startswith("Written: ")]
    return Path(line.rpartition(" ")[2]).read_text()


def _finished(folder: Path) -> dict[str, int]:
    """The manifests of finished videos, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9].json")}


def test_the_script_of_a_dry_run_makes_the_video_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    words = ("request.prompt=A red ball moves to the left.", "request.num_steps=4")
    number = cluster.submit(script_of(cluster, tmp_path, *words, "request.video_path=many.npy"))
    cluster.wait(number, ["COMPLETED"])
    one = subprocess.run(
        [*_NEMO, *_GENERATE, *words, "request.video_path=one.npy", "--yes"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert one.returncode == 0, one.stderr
    difference = abs(numpy.load(tmp_path / "many.npy").astype(int) - numpy.load(tmp_path / "one.npy"))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.002


def test_a_batch_that_was_killed_is_finished_when_its_job_is_requeued(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "batch.jsonl").write_text("".join(f'{{"prompt": "Ball {n}."}}\n' for n in range(8)))
    words = (
        "batch_input_path=batch.jsonl",
        "video_save_folder=out",
        "setup.replicas=2",
        "request.num_steps=60",
    )
    number = cluster.submit(script_of(cluster, tmp_path, *_SMALL, *words))
    out = tmp_path / "out"
    cluster.wait_until(number, lambda: bool(_finished(out)), what="the first video")
    cluster.requeue(number)  # kills the job where it is, as preemption does
    cluster.wait_until(number, lambda: cluster.job(number).state == "PENDING", what="the requeue")
    before = _finished(out)
    assert 0 < len(before) < 8
    cluster.wait(number, ["COMPLETED"])
    assert cluster.job(number).restarts == 1
    after = _finished(out)
    assert {name: after[name] for name in before} == before
    assert sorted(path.name for path in out.iterdir()) == [
        f"{n}.{ending}" for n in range(8) for ending in ("json", "mp4", "txt")
    ]


def test_a_detached_command_submits_the_job_itself(cluster: Cluster, tmp_path: Path) -> None:
    said = nemo(
        cluster, tmp_path, *_SMALL, "request.prompt=A ball.", "request.num_steps=2", "--detach", "--yes"
    )
    numbers = [int(line.split("Job id: ")[1]) for line in said.splitlines() if "Job id: " in line]
    assert len(numbers) == 1, said
    cluster.submitted.append(numbers[0])
    assert cluster.wait(numbers[0], ["COMPLETED"]).status == 0
    assert (tmp_path / "Cosmos-Nano-Text2World.mp4").is_file()
