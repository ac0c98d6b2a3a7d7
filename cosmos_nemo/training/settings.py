"""What a person chooses for a training run. Standard library only."""

import math
from dataclasses import dataclass

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.request import RequestError

AVERAGES = ("sharded", "host", "off")
RECOMPUTE = ("full", "off")
GRADIENT_DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("auto", "replicated", "distributed")


class TrainingError(RequestError):
    """A training run that cannot be started or continued as asked."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One run. The first block decides the result; the second only where and how it is computed.

    The defaults of learning rate, warm-up, weight decay and text dropout are those of NeMo's general
    post-training (spec/nemo-cosmos1.md 5); each family has noise levels of its own (objective.py).
    """

    num_steps: int = 1000
    global_batch_size: int = 1
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    log_sigma_mean: float | None = None
    log_sigma_std: float = 1.0
    """ln(sigma) of the noise is drawn from a normal distribution with these; None: the model's own mean."""
    high_noise_share: float | None = None
    """Share of the samples with more noise than sampling begins with; None: the model's own."""
    text_dropout: float = 0.2
    """Share of the samples that are trained without their text."""
    average_decay: float = 0.999
    """Of the exponential moving average of the weights; smaller in the first steps."""
    average_every: int = 1
    seed: int = 0

    average: str = "sharded"
    """Where the average lives: beside the master weights, in host memory, or nowhere."""
    micro_batch_size: int = 1
    """Samples of one forward pass of one data parallel rank."""
    tensor_parallel: int = 1
    context_parallel: int = 1
    recompute: str = "full"
    """full: a layer keeps only its input for the backward pass."""
    gradient_dtype: str = "float32"
    optimizer: str = "auto"

    def data_parallel(self, num_ranks: int) -> int:
        return num_ranks // (self.tensor_parallel * self.context_parallel)

    def learning_rate_at(self, step: int) -> float:
        """Of the step with this number, from 1: a straight line up to `learning_rate`, then constant."""
        return self.learning_rate * min(1.0, step / max(self.warmup_steps, 1))


def validate(settings: TrainingSettings, card: ModelCard, *, num_ranks: int) -> None:
    """TrainingError, naming the flag, the value and the way out, unless `num_ranks` ranks can train so."""
    for flag, value in (
        ("--max_steps", settings.num_steps),
        ("--global_batch_size", settings.global_batch_size),
        ("--micro_batch_size", settings.micro_batch_size),
        ("--tensor_parallel", settings.tensor_parallel),
        ("--cp_size", settings.context_parallel),
        ("--average_every", settings.average_every),
    ):
        if value < 1:
            raise TrainingError(f"{flag} {value} must be at least 1.")
    for flag, number, below in (
        ("--learning_rate", settings.learning_rate, math.inf),
        ("--weight_decay", settings.weight_decay, math.inf),
        ("--clip_norm", settings.clip_norm, math.inf),
        ("--warmup_steps", settings.warmup_steps, math.inf),
        ("--log_sigma_std", settings.log_sigma_std, math.inf),
        ("--high_noise_share", settings.high_noise_share or 0.0, 1.0),
        ("--text_dropout", settings.text_dropout, 1.0),
        ("--average_decay", settings.average_decay, 1.0),
    ):
        if not 0 <= number < below:
            most = "" if below == math.inf else f" and below {below:g}"
            raise TrainingError(f"{flag} {number:g} must be at least 0{most}.")
    if settings.log_sigma_mean is not None and not math.isfinite(settings.log_sigma_mean):
        raise TrainingError(f"--log_sigma_mean {settings.log_sigma_mean:g} must be finite.")
    if not 0 <= settings.seed < 2**32:
        raise TrainingError(f"--seed {settings.seed} must be at least 0 and below 2^32 = {2**32}.")
    for flag, choice, choices in (
        ("--average", settings.average, AVERAGES),
        ("--recompute", settings.recompute, RECOMPUTE),
        ("--gradient_dtype", settings.gradient_dtype, GRADIENT_DTYPES),
        ("--optimizer", settings.optimizer, OPTIMIZERS),
    ):
        if choice not in choices:
            raise TrainingError(f"{flag} {choice} is unknown. Pass one of {', '.join(choices)}.")
    _check_ranks(settings, card, num_ranks=num_ranks)


def _check_ranks(settings: TrainingSettings, card: ModelCard, *, num_ranks: int) -> None:
    heads, model_parallel = card.network.num_heads, settings.tensor_parallel * settings.context_parallel
    if heads % settings.tensor_parallel:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise TrainingError(
            f"--tensor_parallel {settings.tensor_parallel} does not divide the {heads} heads of "
            f"{card.name}. Pass one of {divisors}."
        )
    if num_ranks % model_parallel:
        raise TrainingError(
            f"--tensor_parallel {settings.tensor_parallel} x --cp_size {settings.context_parallel} = "
            f"{model_parallel} does not divide the {num_ranks} rank(s). Start a multiple of it with torchrun."
        )
    at_once = settings.data_parallel(num_ranks) * settings.micro_batch_size
    if settings.global_batch_size % at_once:
        raise TrainingError(
            f"--global_batch_size {settings.global_batch_size} is no multiple of the {at_once} samples that "
            f"{settings.data_parallel(num_ranks)} data parallel rank(s) take at once (--micro_batch_size "
            f"{settings.micro_batch_size}). Pass {-(-settings.global_batch_size // at_once) * at_once}."
        )
