"""Puts commands, their factories and the executors into nemo_run's tables."""

from collections.abc import Callable, Mapping
from typing import Any

import nemo_run as run

from cosmos_nemo_recipes import generate, post_train
from cosmos_nemo_recipes.context import CosmosContext
from cosmos_nemo_recipes.executors import EXECUTORS


def register(*, namespace: str) -> None:
    """`nemo NAMESPACE generate` and `nemo NAMESPACE post_train`."""
    _command(generate.generate, generate.factories(), namespace=namespace)
    _command(post_train.post_train, post_train.factories(), namespace=namespace)
    for name, (executor, kind) in EXECUTORS.items():
        run.cli.factory(executor, target=kind, name=name)


def _command(
    function: Callable[..., Any], factories: Mapping[str, Callable[[], run.Partial]], *, namespace: str
) -> None:
    for name, factory in factories.items():
        run.cli.factory(factory, target=function, name=name)
    summary = (function.__doc__ or "").splitlines()[0]
    run.cli.entrypoint(
        function,
        namespace=namespace,
        run_ctx_cls=CosmosContext,
        help=f"{summary} Factories: {', '.join(factories)}.",
    )
