"""One rank of the training tests: the runs of FOLDER/cases.json that include this rank, one after the other.

Each leaves losses and gradient norms in FOLDER/NAME/rank0.json, or what it raised, and its checkpoints in
FOLDER/NAME/log.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS, DiTShape, ModelCard
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.parallel.environment import Ranks, ranks_from
from cosmos_nemo.parallel.groups import open_store, start, start_alone, stop
from cosmos_nemo.training import nemo_checkpoint
from cosmos_nemo.training import post_train as run_module
from cosmos_nemo.training.average import Average
from cosmos_nemo.training.data import InMemory
from cosmos_nemo.training.loop import StepReport, Training
from cosmos_nemo.training.post_train import Run, plan_of, post_train
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from cosmos_nemo.training.update.replicated import Replicated
from tests.fakes import CPU, tiny_network


def tiny(name: str) -> ModelCard:
    """The nano model of that name, with a smaller network."""
    network = replace(
        CARDS[name].network,
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        ffn_hidden_size=128,
        adaln_lora_dim=8,
        text_dim=16,
        text_length=8,
    )
    return replace(CARDS[name], network=network)


CARD = tiny("Cosmos-Nano-Text2World")
# 3 x 3 x 5 = 45 tokens, an odd number: two context parallel ranks have to pad.
LATENT_CTHW = (16, 3, 6, 10)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run. `settings` and `run` hold what differs from the defaults."""

    name: str
    num_ranks: int = 1
    log: str = ""
    """The case whose log_dir it shares, to resume from; its own if empty."""
    start: bool = True
    """From FOLDER/start, else from scratch."""
    settings: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    dies_saving_step: int = 0
    """SIGKILL in the middle of saving this step's checkpoint."""
    stops_after: int = 0
    """The last rank wants to stop once this many steps are done."""
    bad_sample: bool = False
    fails_reading: str = ""
    """What the last rank cannot read, state or weights; sharing weights is then a collective, as on GPUs."""


def settings_of(case: Case) -> TrainingSettings:
    defaults = {
        "num_steps": 3,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "clip_norm": 0.5,
        "average": "off",
        "seed": 5,
    }
    return TrainingSettings(**{**defaults, **case.settings})


def data(card: ModelCard = CARD, *, num_samples: int = 6, seed: int = 0) -> InMemory:
    generator = torch.Generator().manual_seed(seed)
    network = card.network
    return InMemory(
        torch.randn(num_samples, *LATENT_CTHW, generator=generator),
        torch.randn(3, network.text_length, network.text_dim, generator=generator),
        torch.arange(num_samples) % 3,
        24.0,
    )


def alone(
    shape: DiTShape | None = None,
    *,
    card: ModelCard = CARD,
    dtype: torch.dtype = torch.float32,
    weights_seed: int = 0,
    num_samples: int = 6,
    **settings: Any,
) -> Training:
    """A training on this rank alone, without files, of a network with random weights.

    shape: of the network, if it is not the card's.
    """
    if shape is not None:
        card = replace(card, network=shape)
    defaults = {"num_steps": 4, "global_batch_size": 2, "learning_rate": 1e-3, "seed": 5, "average": "off"}
    chosen = TrainingSettings(**{**defaults, **settings})
    network = tiny_network(card.network, dtype=dtype, seed=weights_seed).requires_grad_(True).train()
    groups = start_alone(CPU)
    update = Replicated(network, settings=chosen, groups=groups)
    average = None
    if chosen.average != "off":
        decay, in_host_memory = chosen.average_decay, chosen.average == "host"
        average = Average(update.shards, decay=decay, in_host_memory=in_host_memory)
    return Training(
        card=card,
        settings=chosen,
        network=network,
        update=update,
        average=average,
        dataset=data(card, num_samples=num_samples),
        groups=groups,
        device=CPU,
    )


def write_start(folder: Path, card: ModelCard = CARD) -> None:
    """Weights none of which are zero: the gradients of all of them count from the first step on."""
    from cosmos_nemo.checkpoint.reader import LazyTensor
    from cosmos_nemo.checkpoint.writer import write_torch_dist
    from cosmos_nemo.tools.standin_network import random_network

    weights = {name: tensor.float() for name, tensor in random_network(card.network, seed=3).items()}
    generator = torch.Generator().manual_seed(4)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensor += torch.randn(tensor.shape, generator=generator) / 4
        elif name.endswith(("adaLN_modulation.2.weight", "linear_2.weight", "final_layer.linear.weight")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 * tensor.shape[-1] ** -0.5)
    lazy = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    write_torch_dist(folder, lazy, shape=card.network)


def write_cases(folder: Path, cases: Sequence[Case]) -> None:
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))


def weights_in(checkpoint_folder: Path, card: ModelCard = CARD) -> dict[str, Tensor]:
    """What inference would read, by our names."""
    checkpoint = open_checkpoint(checkpoint_folder)
    rules = network_rules(card.network, checkpoint)
    return {
        name: rule.read(checkpoint, tuple(slice(0, n) for n in rule.shape)) for name, rule in rules.items()
    }


def checkpoint_of(folder: Path, name: str, *, step: int | None = None) -> Path:
    """The newest checkpoint that a case left, or that of a step."""
    found = sorted((folder / name / "log").glob("default/*/checkpoints/epoch=*-step=*"), key=_step_of)
    return found[-1] if step is None else next(path for path in found if _step_of(path) == step)


def told(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / f"rank{rank}.json").read_text())
    return found


def run_case(
    case: Case, folder: Path, *, card: ModelCard, ranks: Ranks, store: Any, device: torch.device
) -> None:
    settings = settings_of(case)
    here = folder / case.name
    here.mkdir(exist_ok=True)
    options = dict(case.run)
    if isinstance(options.get("resume"), str):
        options["resume"] = Path(options["resume"])
    run = Run(
        card=card,
        settings=settings,
        start=folder / "start" if case.start else None,
        log_dir=folder / (case.log or case.name) / "log",
        **options,
    )
    dataset = data(card)
    if case.bad_sample:
        dataset.latents_NCTHW[:, 0, 0, 0, 0] = float("nan")
    reports: list[StepReport] = []
    groups = start(
        ranks,
        plan=plan_of(settings, num_ranks=case.num_ranks),
        store=torch.distributed.PrefixStore(case.name, store),
        device=device,
    )
    is_last = ranks.rank == case.num_ranks - 1
    error = ""
    ended = None
    if case.dies_saving_step:
        _die_saving(case.dies_saving_step)
    if case.fails_reading:
        _fail_reading(case.fails_reading, is_last=is_last)
    try:
        ended = post_train(
            run,
            dataset,
            groups=groups,
            device=device,
            dtype=getattr(torch, case.dtype),
            facts={"why": "a test"},
            on_step=reports.append,
            wants_to_stop=lambda: bool(case.stops_after) and is_last and len(reports) + 1 >= case.stops_after,
        )
    except (ValueError, ArithmeticError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    found = {
        "losses": [report.loss for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "steps": [report.step for report in reports],
        "learning_rates": [report.learning_rate for report in reports],
        "is_complete": ended is not None and ended.is_complete,
        "checkpoint": str(ended.checkpoint) if ended is not None else "",
        "error": error,
    }
    (here / f"rank{ranks.rank}.json").write_text(json.dumps(found))
    torch.distributed.all_reduce(torch.zeros(1))  # by gloo: nobody leaves while another still needs it
    stop()


def main(folder: Path, device_type: str, card: ModelCard = CARD) -> None:
    ranks = ranks_from(os.environ)
    device = torch.device("cuda", ranks.local_rank) if device_type == "cuda" else torch.device("cpu")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container may not know its own name
    store = open_store(ranks)
    for fields in json.loads((folder / "cases.json").read_text()):
        case = Case(**fields)
        if ranks.rank < case.num_ranks:
            run_case(case, folder, card=card, ranks=ranks, store=store, device=device)
    if ranks.num_ranks > 1:
        # Rank 0 hosts the store, and must outlive the others' last use of it.
        store.add("done", 1)
        while ranks.rank == 0 and store.add("done", 0) < ranks.num_ranks:
            pass


def _step_of(path: Path) -> int:
    return int(path.name.rsplit("=", 1)[1])


def _die_saving(step: int) -> None:
    """The disk is as a kill leaves it: the state is written, the weights are about to be."""
    write = nemo_checkpoint.write_torch_dist
    wanted = f"step={step}.partial"

    def write_or_die(target: Path, *args: Any, **options: Any) -> None:
        if target.parent.name.endswith(wanted):
            os.kill(os.getpid(), signal.SIGKILL)
        write(target, *args, **options)

    nemo_checkpoint.write_torch_dist = write_or_die


def _fail_reading(what: str, *, is_last: bool) -> None:
    """For the rest of the process."""

    def refuse(*_: Any, **__: Any) -> None:
        raise TrainingError(f"the {what} are on another host")

    def make_together(*args: Any, **options: Any) -> Any:
        torch.distributed.barrier()
        return make_update(*args, **options)

    make_update = run_module.make_update
    run_module.make_update = make_together
    Replicated.publish = lambda update: torch.distributed.barrier()  # type: ignore[method-assign]
    if is_last:
        setattr(run_module, {"state": "restore", "weights": "load_into"}[what], refuse)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cpu")
    os._exit(0)  # gloo's teardown at exit was seen to abort
