"""`post_train`: what `cosmos-nemo post-train` does, with the field names of NeMo's own training recipes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run

from cosmos_nemo.catalog import CARDS, ModelCard, Task
from cosmos_nemo_recipes.names import factory_name


@dataclass(frozen=True, kw_only=True)
class Data:
    """What `cosmos-nemo prepare-data` wrote."""

    path: Path
    global_batch_size: int = 1
    micro_batch_size: int = 1
    cache_gib: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Strategy:
    tensor_model_parallel_size: int = 1
    context_parallel_size: int = 1
    recompute: str = "full"
    gradient_dtype: str = "float32"
    optimizer: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Trainer:
    max_steps: int = 1000
    strategy: Strategy
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float = 1e-6
    weight_decay: float = 0.0
    clip_grad: float = 1.0
    warmup_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Optim:
    config: OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Objective:
    """None is the model's own."""

    text_dropout: float = 0.2
    log_sigma_mean: float | None = None
    log_sigma_std: float = 1.0
    high_noise_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Average:
    """The moving average of the weights: where it is kept (sharded, host, off), and how."""

    place: str = "sharded"
    decay: float = 0.999
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    path: Path | None = None
    """Weights to begin with; None: the released ones."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    restore_config: RestoreConfig
    resume_if_exists: bool = False
    """Goes on from the newest checkpoint in log.log_dir, or begins; wanted where a job may be requeued."""
    assets_dir: Path | None = None
    from_scratch: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    every_n_train_steps: int = 200
    keep_states: int = 1
    off: bool = False


@dataclass(frozen=True, kw_only=True)
class Log:
    log_dir: Path = Path("nemo_experiments")
    ckpt: Checkpoints


FIELD_NAMES = {
    "--model": "model",
    "--data_path": "data.path",
    "--global_batch_size": "data.global_batch_size",
    "--micro_batch_size": "data.micro_batch_size",
    "--cache_gib": "data.cache_gib",
    "--tensor_parallel": "trainer.strategy.tensor_model_parallel_size",
    "--cp_size": "trainer.strategy.context_parallel_size",
    "--recompute": "trainer.strategy.recompute",
    "--gradient_dtype": "trainer.strategy.gradient_dtype",
    "--optimizer": "trainer.strategy.optimizer",
    "--max_steps": "trainer.max_steps",
    "--seed": "trainer.seed",
    "--learning_rate": "optim.config.lr",
    "--weight_decay": "optim.config.weight_decay",
    "--clip_norm": "optim.config.clip_grad",
    "--warmup_steps": "optim.config.warmup_steps",
    "--text_dropout": "objective.text_dropout",
    "--log_sigma_mean": "objective.log_sigma_mean",
    "--log_sigma_std": "objective.log_sigma_std",
    "--high_noise_share": "objective.high_noise_share",
    "--average": "average.place",
    "--average_decay": "average.decay",
    "--average_every": "average.every",
    "--nemo_checkpoint": "resume.restore_config.path",
    "--resume": "resume.resume_if_exists",
    "--cosmos_assets_dir": "resume.assets_dir",
    "--from_scratch": "resume.from_scratch",
    "--save_every": "log.ckpt.every_n_train_steps",
    "--keep_states": "log.ckpt.keep_states",
    "--no_save": "log.ckpt.off",
    "--log_dir": "log.log_dir",
}
"""What a recipe calls the flags of `cosmos-nemo post-train`; the names of NeMo where it has them."""


def post_train(
    model: str,
    data: Data,
    trainer: Trainer,
    optim: Optim,
    objective: Objective,
    average: Average,
    resume: Resume,
    log: Log,
    dry_run: bool = False,
) -> None:
    """Trains a diffusion model on prepared data; SystemExit with the tool's exit status unless that is 0."""
    import argparse

    from cosmos_nemo.tools import post_train as tool

    parts = {
        "model": model,
        "data": data,
        "trainer": trainer,
        "optim": optim,
        "objective": objective,
        "average": average,
        "resume": resume,
        "log": log,
    }
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    flags = parser.parse_args([*words_of(parts), *(["--dry_run"] if dry_run else [])])
    if status := tool.run(flags, flag_names=FIELD_NAMES):
        raise SystemExit(status)


def words_of(parts: Mapping[str, Any]) -> Iterator[str]:
    """The words of `cosmos-nemo post-train` that a configuration stands for."""
    for flag, path in FIELD_NAMES.items():
        first, *rest = path.split(".")
        value = parts[first]
        for name in rest:
            value = getattr(value, name)
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield f"{flag}={value}"


def factories() -> dict[str, Callable[[], run.Partial]]:
    """Of every card that can be trained, by name."""
    trainable = [card for card in CARDS.values() if card.task not in (Task.TEXT2IMAGE, Task.AUTOREGRESSIVE)]
    return {f"{factory_name(card)}_finetune": _factory(card) for card in trainable}


def _factory(card: ModelCard) -> Callable[[], run.Partial]:
    name = f"{factory_name(card)}_finetune"

    def factory() -> run.Partial:
        return run.Partial(
            post_train,
            model=card.name,
            data=run.Config(Data),
            trainer=run.Config(Trainer, strategy=run.Config(Strategy)),
            optim=run.Config(Optim, config=run.Config(OptimizerConfig)),
            objective=run.Config(Objective),
            average=run.Config(Average),
            resume=run.Config(Resume, restore_config=run.Config(RestoreConfig)),
            log=run.Config(Log, log_dir=Path("nemo_experiments") / name, ckpt=run.Config(Checkpoints)),
        )

    factory.__name__ = name
    factory.__doc__ = f"Post-training of {card.name}."
    return factory
