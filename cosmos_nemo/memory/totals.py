"""What stages need together: of the GPU, where some are parked between uses, and of the host."""

from dataclasses import dataclass

from cosmos_nemo.memory.base import GIB, StageMemory
from cosmos_nemo.memory.order import ORDER
from cosmos_nemo.plan import Plan

DEVICE_OVERHEAD = 3 * GIB // 2
"""Of a GPU's memory, what tensors never get: CUDA's context, libraries, holes between allocations.
Estimated, not measured."""
_ON_EVERY_RANK = ("denoise", "token_generation", "diffusion_decoder", "tokenizer")


@dataclass(frozen=True)
class Use:
    """One entering of a stage, with the other stages whose weights are on the GPU then."""

    stage: StageMemory
    beside: tuple[StageMemory, ...]

    @property
    def num_bytes(self) -> int:
        return self.stage.weights + self.stage.work + sum(other.weights for other in self.beside)


def uses(
    stages: tuple[StageMemory, ...],
    *,
    offload: frozenset[str],
    is_batch: bool,
    order: tuple[str, ...] = ORDER,
) -> list[Use]:
    """Every entering of `stages`, in `order`.

    A stage that is not offloaded stays after its first use; in a batch it is there before it too, from the
    video before. Prefetched weights are not counted: they take only what would stay free.
    """
    by_name = {stage.name: stage for stage in stages}
    resident = {stage.name: stage for stage in stages if is_batch and not stage.is_in(offload)}
    found = []
    for stage in (by_name[name] for name in order if name in by_name):
        found.append(Use(stage, tuple(other for name, other in resident.items() if name != stage.name)))
        if not stage.is_in(offload):
            resident[stage.name] = stage
    return found


def peak(
    stages: tuple[StageMemory, ...],
    *,
    offload: frozenset[str],
    is_batch: bool,
    order: tuple[str, ...] = ORDER,
) -> int:
    """The most bytes in use at once, where the stages are entered in `order`."""
    found = uses(stages, offload=offload, is_batch=is_batch, order=order)
    return max((use.num_bytes for use in found), default=0)


def host_bytes(stages: tuple[StageMemory, ...], offload: frozenset[str], *, plan: Plan | None = None) -> int:
    """Of the host copies of all parked stages of all ranks.

    Each rank has its networks, or its parts of them, and may have a tokenizer; the other stages are those of
    each replica's first rank.
    """
    plan = plan or Plan()
    return sum(
        stage.weights * (plan.num_ranks if stage.name in _ON_EVERY_RANK else plan.replicas)
        for stage in stages
        if stage.is_in(offload)
    )
