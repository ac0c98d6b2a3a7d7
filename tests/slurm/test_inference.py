"""The scripts of docs/slurm.md make what one process makes: two nodes of two ranks, gloo, the nano model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tests.parallel.launcher import clean_environment
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import GENERAL, NANO, PROMPT, SMALL, script

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> numpy.ndarray:
    """The video of a process alone."""
    path = tmp_path_factory.mktemp("one") / "one.npy"
    command = [sys.executable, GENERAL, *NANO, *PROMPT, "--video_save_path", str(path)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return numpy.load(path)


@pytest.mark.parametrize("name", ["ranks.sh", "torchrun.sh"])
def test_two_nodes_make_the_video_of_one_process(
    cluster: Cluster, one: numpy.ndarray, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "many.npy"
    number = cluster.submit(script(name), GENERAL, *NANO, *PROMPT, "--video_save_path", str(path))
    job = cluster.wait(number, ["COMPLETED"])
    assert job.status == 0
    assert "on 4 rank(s)" in cluster.output(number)
    assert json.loads(path.with_suffix(".json").read_text())["plan"] == _plan(cfg=2, cp=2)
    difference = abs(numpy.load(path).astype(int) - one)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.002


def test_replicas_on_two_nodes_make_all_videos_of_a_batch(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_text("".join(f'{{"prompt": "Ball {n}."}}\n' for n in range(4)))
    batch = ["--batch_input_path", "batch.jsonl", "--video_save_folder", "out", "--replicas", "2"]
    number = cluster.submit(
        script("ranks.sh"), GENERAL, *NANO, *SMALL, "--num_steps", "35", *batch, at=tmp_path
    )
    cluster.wait(number, ["COMPLETED"])
    assert "4 videos made, 0 were there" in cluster.output(number)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{n}.{ending}" for n in range(4) for ending in ("json", "mp4", "txt")]
    for n in range(4):
        manifest = json.loads((tmp_path / f"out/{n}.json").read_text())
        assert manifest["prompt"] == f"Ball {n}."
        assert manifest["plan"] == _plan(cfg=2, cp=1, replicas=2)


def test_the_job_ends_with_the_status_of_the_door(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.submit(script("ranks.sh"), GENERAL, *NANO, *PROMPT, "--height", "100", at=tmp_path)
    assert cluster.wait(number, ["FAILED"], timeout=60).status == 2
    assert cluster.output(number).count("RequestError: --height 100") == 1


def _plan(*, cfg: int, cp: int, replicas: int = 1) -> dict[str, int]:
    return {"cfg": cfg, "cp": cp, "tp": 1, "replicas": replicas}
