"""How `nemo cosmos` reads its words and starts a task: as nemo_run does, but for what stands here.

Overrides are read by overrides.py. A job that failed is a non-zero exit status. A dry run without an executor
checks the request and prints the plan; one with an executor leaves what it would submit.
"""

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run
import typer
from nemo_run.cli.api import RunContext, list_factories
from nemo_run.cli.cli_parser import CLIException, parse_cli_args
from nemo_run.core.tunnel.client import LocalTunnel
from torchx.specs import AppState

from cosmos_nemo_recipes.executors import EXECUTORS
from cosmos_nemo_recipes.generate import leave_to_the_batch
from cosmos_nemo_recipes.overrides import (
    RecipeError,
    apply_overrides,
    check_names,
    missing_fields,
    place_paths,
    serializable,
)

_BAD_REQUEST, _FAILED = 2, 1


@dataclass(kw_only=True)
class CosmosContext(RunContext):
    """One call of `nemo cosmos ...`; RunContext's fields are nemo_run's options."""

    def cli_execute(self, fn: Callable[..., Any], args: list[str], entrypoint_type: str = "task") -> None:
        """Runs the task; SystemExit 2 for words that cannot be meant, 1 for a failed job."""
        try:
            words = {"executor": [], "plugins": [], "": []}
            for word in args:
                name = word.partition("=")[0].partition(".")[0].partition("[")[0]
                words[name if name in words else ""].append(word)
            self.parse_args(words["executor"] + words["plugins"])
            if self.to_yaml or self.to_toml or self.to_json or self.repl:
                super()._execute_task(fn, words[""])
                return
            task = self.parse_fn(fn, words[""])
            self._run(task)
        except (RecipeError, CLIException) as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise SystemExit(_BAD_REQUEST) from None

    def parse_fn(self, fn: Callable[..., Any], args: list[str], **default_kwargs: Any) -> run.Partial:
        """The task of the factory, with its overrides. RecipeError for what cannot be meant."""
        names = [factory.__name__ for factory in list_factories(_namespace(fn))]
        if self.factory is None and self.yaml is None:
            raise RecipeError(f"--factory is missing. Pass one of {', '.join(names)}.")
        if isinstance(self.factory, str) and self.factory not in names and not self.factory.startswith("@"):
            near = difflib.get_close_matches(self.factory, names, n=3, cutoff=0.5) or names
            raise RecipeError(f"--factory {self.factory} does not exist. Did you mean {' or '.join(near)}?")
        task = super().parse_fn(fn, [], **default_kwargs)
        apply_overrides(task, args)
        if getattr(task, "batch_input_path", None) is not None:
            leave_to_the_batch(task)
        if missing := missing_fields(task):
            raise RecipeError(
                f"{missing[0]} is missing. Pass {' and '.join(f'{name}=...' for name in missing)}."
            )
        place_paths(task, self._folder())
        return serializable(task)

    def parse_executor(self, name: str, *args: str) -> run.Config:
        """The executor of that name, ours or one of a workspace.py, with its overrides."""
        if name not in EXECUTORS:
            try:
                return super().parse_executor(name, *args)
            except ValueError:
                raise RecipeError(
                    f"executor={name} does not exist. Pass one of {', '.join(EXECUTORS)}, or none: then this "
                    "process is the only rank, or one of those that torchrun started."
                ) from None
        config = EXECUTORS[name][0]()
        check_names(config, args, prefix="executor")
        config = parse_cli_args(config, list(args))
        if missing := missing_fields(config, "executor."):
            raise RecipeError(f"{missing[0]} is missing. Pass {missing[0]}=... .")
        return config

    def _folder(self) -> Path | None:
        """Where relative paths begin; None if the job does not see this machine's files under their names."""
        executor = getattr(self, "executor", None)
        is_contained = getattr(executor, "container_image", None) is not None
        is_elsewhere = not isinstance(getattr(executor, "tunnel", None), LocalTunnel | None)
        return None if is_contained or is_elsewhere else Path.cwd()

    def _run(self, task: run.Partial) -> None:
        if self.executor is None or self.direct:
            if self.dryrun:
                task.dry_run = True
            run.run(task, direct=True, name=self.name)
            return
        run.dryrun_fn(task, executor=self.executor)
        if not (self.dryrun or self.skip_confirmation or typer.confirm("Continue?")):
            return
        _use_this_python(self.executor)
        with run.Experiment(self.name, executor=self.executor) as experiment:
            tails = self.tail_logs or isinstance(self.executor, run.LocalExecutor | run.DockerExecutor)
            experiment.add(task, name=self.name, plugins=self.plugins or None, tail_logs=tails)
            if self.dryrun:
                experiment.dryrun(delete_exp_dir=False)
                _show_what_was_written(experiment)
                return
            experiment.run(detach=self.detach, tail_logs=tails)
        if not self.detach:
            _check_ended_well(experiment)


def _namespace(fn: Callable[..., Any]) -> str:
    from nemo_run.config import get_type_namespace

    return get_type_namespace(fn)


def _use_this_python(executor: run.Executor) -> None:
    """Jobs outside a container call python and torchrun, which an environment that is not activated hides."""
    here = Path(sys.executable).parent
    if isinstance(executor, run.LocalExecutor):
        executor.env_vars.setdefault("PATH", os.pathsep.join((str(here), os.environ.get("PATH", ""))))
        # torchrun's own; nemo_run would ask for INFO
        executor.env_vars.setdefault("LOGLEVEL", os.environ.get("LOGLEVEL", "WARNING"))
    if isinstance(executor, run.SlurmExecutor) and executor.container_image is None:
        executor.env_vars.setdefault("PATH", f"{here}:$PATH")


def _show_what_was_written(experiment: run.Experiment) -> None:
    """Where the files lie that a real run would have submitted."""
    for job in experiment.jobs:
        folder = Path(job.executor.experiment_dir)
        scripts = sorted(folder.glob("*_sbatch.sh"))
        for script in scripts:
            typer.echo(f"Written: {script}. On the cluster: sbatch --requeue {script}")
        if not scripts:
            typer.echo(f"Written: {folder}")


def _check_ended_well(experiment: run.Experiment) -> None:
    for job in experiment.jobs:
        if job.state is not AppState.SUCCEEDED:
            typer.echo(f"{job.id} ended as {job.state.name}; its logs: {job.executor.job_dir}", err=True)
            raise SystemExit(_FAILED)
