"""Ranks that are lost, and jobs that are ended in the middle of a batch and run again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import GENERAL, NANO, PROMPT, SMALL, script

pytestmark = pytest.mark.slurm

_ENDLESS = ("--num_steps", "100000")
_NUM_VIDEOS = 3


def _denoising(cluster: Cluster, folder: Path, name: str = "ranks.sh", *, wait: int = 60) -> int:
    """A job whose ranks are in the middle of an endless video, which would be written to the folder."""
    text = script(name, replaced={"--wait=60": f"--wait={wait}"})
    flags = [*NANO, *PROMPT, *SMALL, *_ENDLESS, "--video_save_path", str(folder / "a.mp4")]
    number = cluster.submit(text, GENERAL, *flags)
    cluster.wait_until(number, lambda: "denoise:" in cluster.output(number), what="the first step")
    return number


def _end(cluster: Cluster, number: int, rank: int, how: signal.Signals) -> float:
    """Sends the signal to a rank; the seconds until the job has ended, and it must have failed."""
    os.kill(cluster.pid_of_rank(number, rank), how)
    start = time.monotonic()
    assert cluster.wait(number, ["FAILED"], timeout=150).status != 0
    assert cluster.processes_of(number) == []
    return time.monotonic() - start


@pytest.mark.parametrize("name", ["ranks.sh", "torchrun.sh"])
def test_a_job_that_loses_a_rank_of_its_second_node_fails_within_a_minute(
    cluster: Cluster, name: str, tmp_path: Path
) -> None:
    number = _denoising(cluster, tmp_path, name)
    assert _end(cluster, number, 3, signal.SIGKILL) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_loses_its_first_rank_fails_at_once(cluster: Cluster, tmp_path: Path) -> None:
    number = _denoising(cluster, tmp_path)
    assert _end(cluster, number, 0, signal.SIGKILL) < 30
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_frozen_does_not_hold_the_job(cluster: Cluster, tmp_path: Path) -> None:
    number = _denoising(cluster, tmp_path, wait=5)
    assert _end(cluster, number, 3, signal.SIGSTOP) < 90
    assert "rank 3 has not been heard of for 40 s" in cluster.output(number)


def _batch(cluster: Cluster, name: str, folder: Path) -> int:
    """A job in the middle of a batch: at least one video is made, and one is not."""
    (folder / "batch.jsonl").write_text("".join(f'{{"prompt": "Ball {n}."}}\n' for n in range(_NUM_VIDEOS)))
    flags = [*SMALL, "--num_steps", "40", "--batch_input_path", "batch.jsonl", "--video_save_folder", "out"]
    number = cluster.submit(script(name), GENERAL, *NANO, *flags, at=folder)
    cluster.wait_until(number, lambda: (folder / "out/0.json").exists(), what="the first video")
    return number


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished video was written, and which file it is."""
    manifests = (folder / "out").glob("*.json")
    return {
        path.stem: ((found := path.with_suffix(".mp4").stat()).st_mtime_ns, found.st_ino)
        for path in manifests
    }


def _goes_on(cluster: Cluster, number: int, before: dict[str, tuple[int, int]], folder: Path) -> None:
    """The job's next run makes the missing videos, and those alone."""
    assert 0 < len(before) < _NUM_VIDEOS
    cluster.wait_until(number, lambda: cluster.job(number).restarts == 1, what="its second run")
    cluster.wait(number, ["COMPLETED"])
    after = _written(folder)
    assert {name: after[name] for name in before} == before
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == [f"{n}.{ending}" for n in range(_NUM_VIDEOS) for ending in ("json", "mp4", "txt")]
    for n in range(_NUM_VIDEOS):
        assert json.loads((folder / f"out/{n}.json").read_text())["prompt"] == f"Ball {n}."
    assert f"{_NUM_VIDEOS - len(before)} videos made, {len(before)} were there" in cluster.output(number)


def test_a_job_whose_time_ends_requeues_itself_and_goes_on_with_its_batch(
    cluster: Cluster, tmp_path: Path
) -> None:
    number = _batch(cluster, "requeue.sh", tmp_path)
    cluster.cancel(number, "--batch", "--signal=USR1")  # as Slurm does a while before the end of its time
    cluster.wait_until(number, lambda: cluster.job(number).state == "PENDING", what="the requeue", timeout=60)
    _goes_on(cluster, number, _written(tmp_path), tmp_path)


def test_a_job_whose_rank_was_killed_goes_on_with_its_batch_when_it_is_requeued(
    cluster: Cluster, tmp_path: Path
) -> None:
    number = _batch(cluster, "ranks.sh", tmp_path)
    os.kill(cluster.pid_of_rank(number, 0), signal.SIGKILL)  # the one that writes
    cluster.wait(number, ["FAILED"], timeout=60)
    before = _written(tmp_path)
    cluster.requeue(number)
    _goes_on(cluster, number, before, tmp_path)
