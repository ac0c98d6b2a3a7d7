"""How `nemo cosmos` reads its words and starts a task: as nemo_run does, but for what stands here.

Overrides are read by overrides.py, files of them by config_file.py. What cannot be meant is told before a job
is started. A job that failed is a non-zero exit status, and one on this machine ends with its command. A dry
run without an executor prints the plan; one with an executor leaves what it would submit.
"""

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run
import typer
from nemo_run.cli.api import RunContext, list_factories
from nemo_run.cli.cli_parser import parse_cli_args
from nemo_run.config import get_type_namespace
from nemo_run.core.tunnel.client import LocalTunnel
from torchx.specs import AppState

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.request import RequestError
from cosmos_nemo_recipes import config_file, generate
from cosmos_nemo_recipes.executors import EXECUTORS, with_our_parameters
from cosmos_nemo_recipes.overrides import (
    RecipeError,
    apply_overrides,
    check_name,
    first_name,
    make_serializable,
    missing_fields,
    place_paths,
)

_BAD_REQUEST, _FAILED = 2, 1
_EXAMPLES = (
    "executor.nodes=2 executor.container_mounts=\"['/data:/data']\" "
    "executor.env_vars=\"{'HF_HOME': '/data'}\""
)
_ON_THIS_MACHINE = (run.LocalExecutor, run.DockerExecutor)


@dataclass(kw_only=True)
class CosmosContext(RunContext):
    """One call of `nemo cosmos ...`; RunContext's fields are nemo_run's options."""

    factory: str | None = None
    """--factory, or what the file of --yaml names."""

    def cli_execute(self, fn: Callable[..., Any], args: list[str], entrypoint_type: str = "task") -> None:
        """Runs the task; SystemExit 2 for words that cannot be meant, 1 for a failed job."""
        try:
            self._execute(fn, args)
        except (RequestError, CatalogError) as error:
            typer.echo(f"{type(error).__name__}: {_in_field_names(error)}", err=True)
            raise SystemExit(_BAD_REQUEST) from None

    def parse_fn(self, fn: Callable[..., Any], args: list[str], **default_kwargs: Any) -> run.Partial:
        """The task that a job can be given. RequestError for what cannot be meant."""
        task = self._configured(fn, args)
        if missing := missing_fields(task):
            raise RecipeError(f"{' and '.join(missing)} must be given: {missing[0]}=VALUE.")
        place_paths(task, self._folder())
        if fn is generate.generate and getattr(self, "executor", None) is not None:
            generate.check(task, sees_files=self._folder() is not None)
        make_serializable(task)
        return task

    def parse_executor(self, name: str, *args: str) -> run.Config:
        """The executor of that name, ours or one of a workspace.py, with its overrides."""
        if name in EXECUTORS:
            config = EXECUTORS[name][0]()
        else:
            try:
                config = super().parse_executor(name)
            except ValueError:
                raise RecipeError(
                    f"executor={name} does not exist. Pass one of {', '.join(EXECUTORS)}, or none: then this "
                    "process is the only rank, or one of those that torchrun started."
                ) from None
        for word in args:
            check_name(config, word, prefix="executor")
            try:
                config = parse_cli_args(config, [word])
            except Exception:  # of any kind, each with a text about nemo_run's own code
                raise RecipeError(
                    f"executor.{word} cannot be read as what that field holds. Like this: {_EXAMPLES}"
                ) from None
        if name == "slurm" and config.additional_parameters is not None:
            config.additional_parameters = with_our_parameters(config.additional_parameters)
        if missing := missing_fields(config, "executor."):
            raise RecipeError(f"{' and '.join(missing)} must be given: {missing[0]}=VALUE.")
        return config

    def _execute(self, fn: Callable[..., Any], args: list[str]) -> None:
        words: dict[str, list[str]] = {"executor": [], "plugins": [], "": []}
        for word in args:
            name = first_name(word)
            words[name if name in words else ""].append(word)
        self._check_options(words)
        if target := self.to_yaml or self.to_json:
            config_file.write(Path(target), self._configured(fn, words[""]), factory=str(self.factory))
            typer.echo(f"Written: {target}")
            return
        try:
            self.parse_args([*words["executor"], *words["plugins"]])
        except ValueError as error:  # of plugins; an executor's are RecipeErrors
            raise RecipeError(str(error)) from None
        task = self.parse_fn(fn, words[""])
        if self.executor is None or self.direct:
            if self.dryrun:
                task.dry_run = True
            run.run(task, direct=True, name=self.name)
            return
        run.dryrun_fn(task, executor=self.executor)
        if self.dryrun or self.skip_confirmation or _confirmed():
            self._launch(task)

    def _check_options(self, words: dict[str, list[str]]) -> None:
        """RecipeError for options that have no effect here, and would be passed over."""
        named = words["executor"][:1]
        if (words["executor"] or words["plugins"]) and not (named and named[0].startswith("executor=")):
            wrong = (words["executor"] or words["plugins"])[0]
            raise RecipeError(
                f"{wrong} has no effect without executor=NAME before it: {', '.join(EXECUTORS)}."
            )
        if self.load or self.repl or self.to_toml:
            option = "--load" if self.load else "--repl" if self.repl else "--to-toml"
            raise RecipeError(f"{option} is not offered here. --yaml, --to-yaml and --to-json are.")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise RecipeError(f"--name {self.name!r} becomes a folder: write letters, digits, -, _ and dots.")

    def _configured(self, fn: Callable[..., Any], args: list[str]) -> run.Partial:
        """The factory's task with the fields of the file, and those of the words over them."""
        stated, in_file = (None, []) if self.yaml is None else config_file.read_words(Path(self.yaml))
        known = {factory.__name__: factory for factory in list_factories(get_type_namespace(fn))}
        name = self.factory = self.factory or stated
        if name is None:
            raise RecipeError(f"--factory is missing. Pass one of {', '.join(known)}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise RecipeError(f"--factory {name} does not exist. Did you mean {' or '.join(near)}?")
        task = known[name]()
        apply_overrides(task, [*in_file, *args])
        if fn is generate.generate:
            generate.complete(task, given={word.partition("=")[0] for word in args})
        return task

    def _folder(self) -> Path | None:
        """Where relative paths begin; None if the job does not see this machine's files under their names."""
        executor = getattr(self, "executor", None)
        is_contained = getattr(executor, "container_image", None) is not None
        is_elsewhere = not isinstance(getattr(executor, "tunnel", None), LocalTunnel | None)
        return None if is_contained or is_elsewhere else Path.cwd()

    def _launch(self, task: run.Partial) -> None:
        runs_here = isinstance(self.executor, _ON_THIS_MACHINE)
        if self.detach and runs_here:
            raise RecipeError("--detach is for a cluster: a job on this machine ends with its command.")
        _use_this_python(self.executor)
        experiment = run.Experiment(self.name, executor=self.executor)
        with _ended_with(experiment) if runs_here else contextlib.nullcontext(), experiment:
            tails = self.tail_logs or runs_here
            experiment.add(task, name=self.name, plugins=self.plugins or None, tail_logs=tails)
            if self.dryrun:
                experiment.dryrun(delete_exp_dir=False)
                _show_what_was_written(experiment)
                return
            experiment.run(detach=self.detach, tail_logs=tails)
        if not self.detach:
            _check_ended_well(experiment)


def _in_field_names(error: Exception) -> str:
    from cosmos_nemo.launch import in_own_names

    return in_own_names(str(error), generate.FIELD_NAMES)


def _confirmed() -> bool:
    try:
        return typer.confirm("Continue?")
    except typer.Abort:
        raise RecipeError("Nobody is here to say yes. Pass --yes.") from None


@contextlib.contextmanager
def _ended_with(experiment: run.Experiment) -> Iterator[None]:
    """SIGTERM and Control-C end the jobs of this machine, which would go on alone."""

    def end(number: int, _: object) -> None:
        for job in experiment.jobs:
            experiment.cancel(job.id)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
