"""The harness itself: it leaves nothing behind, and says what it lacks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.launcher import ROOT, clean_environment
from tests.slurm.cluster import NODES, Cluster, ClusterError, SlurmIsMissing, check_installed
from tests.slurm.leftovers import environments

_OWNER = """
import sys, time
from tests.slurm.cluster import running_cluster
with running_cluster() as cluster:
    number = cluster.submit("#!/bin/bash\\nsrun -N2 -n4 sleep 1000 & sleep 1000", flags=["-N2", "-n4"])
    cluster.wait_until(number, lambda: len(cluster.processes_of(number)) >= 8, what="its steps", timeout=30)
    print(cluster.conf, flush=True)
    time.sleep(1000)
"""


def test_missing_programs_are_named_with_their_packages(tmp_path: Path) -> None:
    for program in ("sbatch", "slurmctld"):
        (tmp_path / program).touch(mode=0o755)
    with pytest.raises(SlurmIsMissing, match=r"apt-get install --no-install-recommends slurmd munge$"):
        check_installed(str(tmp_path))


@pytest.mark.slurm
def test_both_nodes_take_jobs(cluster: Cluster) -> None:
    number = cluster.submit(
        '#!/bin/bash\nsrun bash -c \'echo "$SLURMD_NODENAME $0"\' "$@"', "word", flags=["-N2"]
    )
    assert cluster.wait(number, ["COMPLETED"], timeout=60).status == 0
    assert sorted(cluster.output(number).split("\n")) == ["", *(f"{node} word" for node in NODES)]


@pytest.mark.slurm
def test_a_job_that_ends_otherwise_than_waited_for_is_an_error_with_what_it_said(cluster: Cluster) -> None:
    number = cluster.submit("#!/bin/bash\necho no\nexit 7")
    with pytest.raises(ClusterError, match=r"(?s)status=7.*no"):
        cluster.wait(number, ["COMPLETED"], timeout=60)
    assert cluster.job(number).status == 7


@pytest.mark.slurm
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left_of_a_cluster_whose_owner_is_ended(how: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    conf = Path(owner.stdout.readline().strip())
    assert len(environments(conf)) >= 15  # the daemons, slurmstepd on both nodes, the script and its ranks
    owner.send_signal(how)
    owner.wait(timeout=60)
    owner.stdout.close()
    deadline = time.monotonic() + 30
    while (environments(conf) or conf.parent.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert environments(conf) == {}
    assert not conf.parent.exists()
