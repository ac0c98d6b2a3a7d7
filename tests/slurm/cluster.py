"""A Slurm cluster of two nodes on this machine, started and ended by the tests.

One munged, one slurmctld and a slurmd for each node, all with the rights of whoever starts them: no root, no
systemd, and nothing of a Slurm that the machine may have (files, ports and the munge key are its own).
"""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.parallel.launcher import ROOT, clean_environment, free_port
from tests.slurm.leftovers import with_variables

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
}
"""The Debian package of each program."""

NODES = ("127.0.0.1", "127.0.0.2")
"""Names that every machine resolves, as those of a real cluster's nodes are resolved by each of them."""
RANKS_PER_NODE = 2

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")
_START_PATIENCE = 60.0
_DAEMONS_ARE_IN = "/usr/sbin:/usr/local/sbin:/sbin"
"""Folders that an ordinary user's PATH may lack."""

_CONF = """
ClusterName=cosmos-nemo-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for as long as its old credential lasts; the default is two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# Nodes are looked for at once, and again every two seconds; the default is once a minute.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=3600
KillWait=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs={cpus} State=UNKNOWN"


class SlurmIsMissing(RuntimeError):
    """The programs of Slurm, or some of them, are not installed."""


class ClusterError(RuntimeError):
    """The cluster, or a job in it, does not do what it was waited for."""


@dataclass(frozen=True)
class Job:
    """What scontrol says of a job."""

    state: str
    status: int
    """The batch script's exit status; 0 while it runs."""
    signal: int
    """The signal that ended the batch script, or 0."""
    restarts: int
    reason: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


@dataclass
class Cluster:
    """A running cluster; `folder` holds its files and those of its jobs."""

    folder: Path
    environment: dict[str, str]
    submitted: list[int] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def call(self, program: str, *args: str) -> str:
        """What one of Slurm's programs prints; ClusterError with what it complains of."""
        done = subprocess.run(
            [program, *args], env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise ClusterError(f"{program} {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def submit(self, script: str, *args: str, flags: Collection[str] = (), at: Path | None = None) -> int:
        """The id of a new job that runs the text `script` with `args` in the folder `at`.

        flags: of sbatch, which win over the #SBATCH lines.
        """
        path = self.folder / f"script_{len(self.submitted)}.sh"
        path.write_text(script, encoding="utf-8")
        output = ["--output", str(self.folder / "%j.out"), "--chdir", str(at or self.folder)]
        printed = self.call("sbatch", "--parsable", *output, *flags, str(path), *args)
        self.submitted.append(int(printed.strip()))
        return self.submitted[-1]

    def job(self, number: int) -> Job:
        text = self.call("scontrol", "--oneliner", "show", "job", str(number))
        facts = dict(re.findall(r"(\w+)=(\S*)", text))
        status, signal_number = map(int, facts["ExitCode"].split(":"))
        return Job(facts["JobState"], status, signal_number, int(facts["Restarts"]), facts["Reason"])

    def output(self, number: int) -> str:
        """What the job has printed so far, on all nodes and in all of its runs."""
        path = self.folder / f"{number}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, number: int, states: Collection[str] = ENDED, *, timeout: float = 240) -> Job:
        """The job when it is in one of the states; ClusterError if it ends in another or does not come."""
        job = self.wait_until(
            number,
            lambda: self.job(number).state in states or self.job(number).has_ended,
            what=" or ".join(states),
            timeout=timeout,
            may_end=True,
        )
        if job.state not in states:
            raise ClusterError(f"job {number} is {job}, not {states}:\n{self.output(number)[-8000:]}")
        return job

    def wait_until(
        self,
        number: int,
        comes: Callable[[], bool],
        *,
        what: str,
        timeout: float = 240,
        may_end: bool = False,
    ) -> Job:
        """The job when `comes` says so; ClusterError with all it printed if it ends or the time is over."""
        deadline = time.monotonic() + timeout
        while not comes():
            job = self.job(number)
            if (job.has_ended and not may_end and not comes()) or time.monotonic() > deadline:
                told = f"{self.output(number)[-8000:]}\n{self.logs()}"
                raise ClusterError(f"job {number} is {job}; waited for {what}:\n{told}")
            time.sleep(0.2)
        return self.job(number)

    def cancel(self, number: int, *flags: str) -> None:
        """scancel; flags such as --signal=TERM."""
        self.call("scancel", *flags, str(number))

    def requeue(self, number: int) -> None:
        self.call("scontrol", "requeue", str(number))

    def pid_of_rank(self, number: int, rank: int) -> int:
        """The process that srun or torchrun started as this rank of the job; ClusterError without it."""
        job = {"SLURM_JOB_ID": str(number), "SLURM_STEP_ID": "0"}
        by_torchrun = with_variables(self.conf, {**job, "RANK": str(rank)})
        found = by_torchrun or with_variables(self.conf, {**job, "SLURM_PROCID": str(rank)})
        if not found:
            raise ClusterError(f"job {number} has no rank {rank}:\n{self.output(number)[-8000:]}")
        return found[0]

    def processes_of(self, number: int) -> list[int]:
        """All of the job's processes on all nodes."""
        return with_variables(self.conf, {"SLURM_JOB_ID": str(number)})

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        paths = [self.folder / "munged.err", *sorted(self.folder.glob("slurm*.log"))]
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths if path.exists()
        )


def path_with_daemons() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), _DAEMONS_ARE_IN])


def check_installed(path: str) -> None:
    """SlurmIsMissing, which names the Debian packages to install, if a program is not on the path."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None]
    if missing:
        raise SlurmIsMissing(
            f"The tests on a Slurm cluster need the packages {' '.join(missing)}: "
            f"apt-get install --no-install-recommends {' '.join(missing)}"
        )


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Two nodes, both idle. Whatever happens, no process and no file of the cluster outlives the block.

    SlurmIsMissing or ClusterError if it cannot start.
    """
    path = path_with_daemons()
    check_installed(path)
    # A socket's path holds 107 bytes at most: the tests' own folders may be longer.
    with tempfile.TemporaryDirectory(prefix="slurm_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # A job's python and torchrun are those of the tests.
        programs = os.pathsep.join([str(Path(sys.executable).parent), path])
        environment = clean_environment(SLURM_CONF=str(folder / "slurm.conf"), PATH=programs)
        cluster = Cluster(folder, environment)
        leftovers = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.leftovers", str(cluster.conf)],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            _start(cluster, daemons)
            yield cluster
        finally:
            with _uninterrupted():
                _cancel_all(cluster)
                assert leftovers.stdin is not None
                leftovers.stdin.close()
                for process in (leftovers, *daemons):
                    process.wait()


def _start(cluster: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    folder = cluster.folder
    _write_conf(cluster)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]

    def daemon(name: str, *command: str) -> None:
        with (folder / f"{name}.err").open("wb") as err:
            # In a session of its own: Control-C is for the tests, which then end the daemons in order.
            daemons.append(
                subprocess.Popen(
                    command,
                    env=cluster.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=err,
                    stderr=err,
                    start_new_session=True,
                )
            )

    # --force: the key lies below /tmp, which anybody may write to.
    daemon("munged", "munged", "--foreground", "--force", *options)
    _wait_for(cluster, daemons, "munged", lambda: (folder / "munge.socket").exists())
    daemon("slurmctld", "slurmctld", "-D", "-i", "-f", str(cluster.conf))
    for node in NODES:
        daemon(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", str(cluster.conf))
    _wait_for(cluster, daemons, "two idle nodes", lambda: _states(cluster) == ["idle"] * len(NODES))


def _write_conf(cluster: Cluster) -> None:
    host = socket.gethostname().partition(".")[0]
    nodes = [_NODE.format(name=name, host=host, port=free_port(), cpus=RANKS_PER_NODE) for name in NODES]
    text = _CONF.format(
        folder=cluster.folder,
        host=host,
        port=free_port(),
        user=getpass.getuser(),
        nodes="\n".join(nodes),
    )
    cluster.conf.write_text(text, encoding="utf-8")
    (cluster.folder / "state").mkdir()
    for node in NODES:
        (cluster.folder / f"spool.{node}").mkdir()


def _states(cluster: Cluster) -> list[str]:
    try:
        return cluster.call("sinfo", "--noheader", "--Node", "--format=%t").split()
    except ClusterError:  # slurmctld does not answer yet
        return []


def _wait_for(
    cluster: Cluster, daemons: list[subprocess.Popen[bytes]], what: str, comes: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + _START_PATIENCE
    while not comes():
        ended = [process for process in daemons if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            why = f"{ended[0].args} has ended" if ended else f"no {what} after {_START_PATIENCE:.0f} s"
            raise ClusterError(f"{why}:\n{cluster.logs()}")
        time.sleep(0.1)


def _cancel_all(cluster: Cluster) -> None:
    """Lets Slurm end its jobs itself, for a few seconds; what then remains is ended with the daemons."""
    with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
        for number in cluster.submitted:
            if not cluster.job(number).has_ended:
                cluster.cancel(number)
        deadline = time.monotonic() + 5
        while any(cluster.processes_of(number) for number in cluster.submitted):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Control-C does not stop the ending, which takes a few seconds."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    try:
        check_installed(path_with_daemons())
    except SlurmIsMissing as error:
        sys.exit(str(error))
