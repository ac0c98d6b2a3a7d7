"""Memory and seconds of post-training steps with random weights and latents, against the prediction.

torchrun --nproc_per_node=2 benchmarks/post_train.py
python benchmarks/post_train.py --gradient_dtype bfloat16 --average host
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from cosmos_nemo.catalog import CARDS, find_card
from cosmos_nemo.parallel.company import open_store
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, start, stop
from cosmos_nemo.training.data import InMemory
from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.memory import MemoryPrediction, predict_memory
from cosmos_nemo.training.post_train import Run, plan_of, post_train
from cosmos_nemo.training.settings import TrainingSettings, validate
from cosmos_nemo.training.update.choose import form_of_update


def main() -> None:
    args = arguments()
    card, ranks = find_card(args.model), ranks_from(os.environ)
    settings = TrainingSettings(
        num_steps=args.steps,
        global_batch_size=ranks.num_ranks // (args.tensor_parallel * args.cp_size),
        learning_rate=1e-6,
        tensor_parallel=args.tensor_parallel,
        context_parallel=args.cp_size,
        gradient_dtype=args.gradient_dtype,
        average=args.average,
        optimizer=args.optimizer,
    )
    validate(settings, card, num_ranks=ranks.num_ranks)
    device = torch.device("cuda", ranks.local_rank)
    plan = plan_of(settings, num_ranks=ranks.num_ranks)
    groups = start(ranks, plan=plan, store=open_store(ranks), device=device)
    form = form_of_update(settings, num_replicas=plan.replicas * plan.cp, device=device)
    predicted = predict_memory(
        card.network,
        settings,
        latent_THW=tuple(args.latent),
        num_replicas=plan.replicas * plan.cp,
        distributed=form == "distributed",
        weights_in_bfloat16=True,
    )
    reports: list[StepReport] = []
    resident: list[int] = []

    def note(report: StepReport) -> None:
        reports.append(report)
        resident.append(torch.cuda.memory_allocated(device))

    with tempfile.TemporaryDirectory() as folder:
        run = Run(card=card, settings=settings, start=None, log_dir=Path(folder), saves=False)
        data = random_data(card.network.text_length, card.network.text_dim, tuple(args.latent), groups)
        post_train(run, data, groups=groups, device=device, dtype=torch.bfloat16, facts={}, on_step=note)
    if groups.rank == 0:
        print_table(predicted, reports, resident, device, form=form, plan=str(plan), args=args)
    stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="Cosmos-1.0-Diffusion-7B-Text2World", help=", ".join(CARDS))
    parser.add_argument("--latent", type=int, nargs=3, default=[16, 88, 160], metavar=("T", "H", "W"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tensor_parallel", type=int, default=1)
    parser.add_argument("--cp_size", type=int, default=1)
    parser.add_argument("--gradient_dtype", default="float32")
    parser.add_argument("--average", default="sharded")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def random_data(text_length: int, text_dim: int, latent_THW: tuple[int, ...], groups: Groups) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    count = max(groups.collection.dp.size(), 1)
    return InMemory(
        torch.randn(count, 16, *latent_THW, generator=generator).bfloat16(),
        torch.randn(1, text_length, text_dim, generator=generator).bfloat16(),
        torch.zeros(count, dtype=torch.long),
        24.0,
    )


def print_table(
    predicted: MemoryPrediction,
    reports: list[StepReport],
    resident: list[int],
    device: torch.device,
    *,
    form: str,
    plan: str,
    args: argparse.Namespace,
) -> None:
    gib = 2**30
    states = predicted.total - predicted.activations - predicted.gradients
    result = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "plan": plan,
        "optimizer": form,
        "latent": args.latent,
        "gradient_dtype": args.gradient_dtype,
        "average": args.average,
        "parameters_of_a_rank": predicted.num_parameters,
        "predicted_peak_gib": round(predicted.total / gib, 1),
        "measured_peak_gib": round(torch.cuda.max_memory_allocated(device) / gib, 1),
        "measured_reserved_gib": round(torch.cuda.max_memory_reserved(device) / gib, 1),
        "predicted_states_gib": round(states / gib, 1),
        "measured_after_step_gib": round(resident[-1] / gib, 1),
        "predicted_activations_gib": round(predicted.activations / gib, 1),
        "seconds_first": round(reports[0].seconds, 2),
        "seconds_per_step": round(statistics.median(report.seconds for report in reports[1:]), 3),
        "losses": [round(report.loss, 4) for report in reports],
    }
    for name, value in result.items():
        print(f"{name:28}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # NCCL's teardown waits for ranks that are gone
