"""Starts Python scripts as copies of a process that has imported torch and Megatron, which takes seconds.

The copy is a process of its own, which runs the script as `python SCRIPT ARGS` does and ends as an
interpreter ends; no thread exists and no random number is drawn before it is made. Requests are JSON lines
on standard input, each answered by one on standard output: `start` with a process id, `poll` with its exit
status (minus the signal that killed it), null while it runs.
"""

import atexit
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_IMPORTED = (
    *("torch", "torch.distributed.checkpoint", "numpy", "einops", "imageio", "safetensors.torch"),
    *("megatron.core.parallel_state", "megatron.core.tensor_parallel", "cosmos_nemo.launch"),
    *("cosmos_nemo.items", "cosmos_nemo.job.stages", "cosmos_nemo.training.post_train"),
    *("transformers.models.t5.modeling_t5", "transformers.models.llama.modeling_llama"),
    *("transformers.models.mistral.modeling_mistral", "transformers.models.siglip.modeling_siglip"),
)

_STARTED_AGAIN = "jemalloc_bg_thd"
"""A thread of pyarrow's memory, which some packages import: it knows of forks."""

_READ_AT_IMPORT = ("CUDA_", "HF_", "MKL_", "NVTE_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")


class ForkServer:
    """What `fork_server.py` does, from the outside."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def start(self, script: Path, *args: str, environment: dict[str, str], out: str, err: str) -> "Forked":
        """A process that runs `script`; it writes to the files `out` and `err`."""
        for name in {*environment, *self._environment}:
            if name.startswith(_READ_AT_IMPORT):
                assert environment.get(name) == self._environment.get(name), f"{name} comes too late"
        argv = [str(script), *args]
        files = {"environment": environment, "folder": str(Path.cwd()), "out": out, "err": err}
        return Forked(self, self.ask({"start": argv, **files}))

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


class Forked:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve() -> dict[str, Any]:
    """Returns in the copies alone: with what to start."""
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                return dict(request)
            answer: int | None = pid
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    sys.exit()


def _become(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    # A new interpreter begins with other numbers in every process, and ranks must agree all the same.
    random.seed()
    importlib.import_module("numpy").random.seed()
    sys.argv = request["start"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    for module in _IMPORTED:
        importlib.import_module(module)
    threads = {
        Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")
    }
    missing = threads - {Path("/proc/self/comm").read_text().strip(), _STARTED_AGAIN}
    assert not missing, f"threads that would be missing from the copies: {missing}"
    _become(_serve())
    runpy.run_path(sys.argv[0], run_name="__main__")
