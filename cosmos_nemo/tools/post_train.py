"""`cosmos-nemo post-train`: trains a diffusion model on prepared data, on one rank or on many.

Several ranks: `torchrun --nproc_per_node=8 -m cosmos_nemo.tools.main post-train ...`, or srun.
"""

import argparse
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_nemo.catalog import CARDS, ModelCard, find_card, with_overrides
from cosmos_nemo.launch import check_same_device, run_ranks, versions

if TYPE_CHECKING:
    import torch

    from cosmos_nemo.parallel.company import Company
    from cosmos_nemo.parallel.groups import Groups
    from cosmos_nemo.training.loop import StepReport
    from cosmos_nemo.training.post_train import Ended, Run
    from cosmos_nemo.training.prepared_folder import PreparedFolder
    from cosmos_nemo.training.settings import TrainingSettings

_TERMINATED = 143


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags, parsed."""

    run: "Run"
    """As long as the weights are not looked for: of the card as released, from scratch."""
    flags: argparse.Namespace

    @property
    def dry_run(self) -> bool:
        return bool(self.flags.dry_run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cosmos-nemo post-train`, one group per question."""
    what = parser.add_argument_group("what is trained")
    what.add_argument("--model", default=next(iter(CARDS)), metavar="CARD", help=", ".join(CARDS))
    what.add_argument("--nemo_checkpoint", type=Path, metavar="PATH", help="weights to begin with")
    what.add_argument("--cosmos_assets_dir", type=Path, help="a folder with one folder per repository")
    what.add_argument("--from_scratch", action="store_true", help="begin with random weights")
    what.add_argument(
        "--data_path", type=Path, required=True, metavar="DIR", help="what cosmos-nemo prepare-data wrote"
    )
    what.add_argument("--cache_gib", type=float, default=8, help="samples kept in host memory; 8")
    how = parser.add_argument_group("how")
    how.add_argument("--max_steps", type=int, default=1000, help="1000")
    how.add_argument("--global_batch_size", type=int, default=1, help="samples per step, over all ranks; 1")
    how.add_argument("--learning_rate", type=float, default=1e-6, help="1e-6")
    how.add_argument("--warmup_steps", type=int, default=0, help="0")
    how.add_argument("--weight_decay", type=float, default=0.0, help="0")
    how.add_argument("--clip_norm", type=float, default=1.0, help="of all gradients; 0 is off; 1")
    how.add_argument("--text_dropout", type=float, default=0.2, help="share trained without text; 0.2")
    how.add_argument(
        "--log_sigma_mean",
        type=float,
        help="of the noise levels' logarithms; 0, of Predict2 half the logarithm of the latent frames",
    )
    how.add_argument("--log_sigma_std", type=float, default=1.0, help="of the noise levels' logarithms; 1")
    how.add_argument(
        "--high_noise_share",
        type=float,
        help="share of the samples with more noise than sampling begins with; 0, of Predict2 0.05",
    )
    how.add_argument("--average", default="sharded", help="moving average: sharded (default), host, off")
    how.add_argument("--average_decay", type=float, default=0.999, help="0.999")
    how.add_argument("--average_every", type=int, default=1, help="steps between its updates; 1")
    how.add_argument("--seed", type=int, default=0, help="0")
    where = parser.add_argument_group("where and how fast")
    where.add_argument("--micro_batch_size", type=int, default=1, help="samples of one forward pass; 1")
    where.add_argument("--tensor_parallel", type=int, default=1, help="1")
    where.add_argument("--cp_size", type=int, default=1, help="context parallel ranks; 1")
    where.add_argument("--recompute", default="full", help="full (default) or off")
    where.add_argument("--gradient_dtype", default="float32", help="float32 (default) or bfloat16")
    where.add_argument(
        "--optimizer",
        default="auto",
        help="distributed (Megatron's, CUDA only), replicated, or auto (default), by the ranks",
    )
    out = parser.add_argument_group("what is written")
    out.add_argument("--log_dir", type=Path, default=Path("nemo_experiments"), help="nemo_experiments")
    out.add_argument("--save_every", type=int, default=200, help="steps; 0: only at the end; 200")
    out.add_argument("--keep_states", type=int, default=1, help="checkpoints that --resume can take; 1")
    out.add_argument("--no_save", action="store_true", help="write no checkpoint, to measure")
    out.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="PATH",
        help="go on from this checkpoint, or from the newest in log_dir; without one there, begin",
    )
    out.add_argument("--dry_run", action="store_true", help="check everything, predict the memory, stop")


def run(args: argparse.Namespace, *, flag_names: Mapping[str, str] | None = None) -> int:
    """0 trained, 2 bad flags, data or weights, 143 stopped by SIGTERM after saving, 1 anything else.

    flag_names: what the caller calls these flags, in errors.
    """
    return run_ranks(
        lambda: _asked(args),
        num_ranks=lambda asked, started: started,
        serve=_serve,
        flag_names=flag_names or {},
    )


def _asked(args: argparse.Namespace) -> Asked:
    from cosmos_nemo.training.post_train import Run
    from cosmos_nemo.training.prepare import check_is_trainable
    from cosmos_nemo.training.settings import TrainingError

    if args.from_scratch and args.nemo_checkpoint is not None:
        raise TrainingError("--from_scratch and --nemo_checkpoint exclude each other. Pass one of them.")
    for flag in ("save_every", "keep_states", "cache_gib"):
        if not 0 <= getattr(args, flag) < math.inf:
            raise TrainingError(f"--{flag} {getattr(args, flag)} must be at least 0.")
    card = find_card(args.model)
    check_is_trainable(card)
    return Asked(
        run=Run(
            card=card,
            settings=_settings(args),
            start=None,
            log_dir=args.log_dir,
            resume=args.resume,
            save_every=args.save_every,
            keep_states=args.keep_states,
            saves=not args.no_save,
        ),
        flags=args,
    )


def _settings(args: argparse.Namespace) -> "TrainingSettings":
    from cosmos_nemo.training.settings import TrainingSettings

    same = {
        name: value for name, value in vars(args).items() if name in TrainingSettings.__dataclass_fields__
    }
    return TrainingSettings(num_steps=args.max_steps, context_parallel=args.cp_size, **same)


def _card_and_start(card: ModelCard, args: argparse.Namespace) -> tuple[ModelCard, Path | None]:
    """The card, with what the checkpoint's card.json says, and the checkpoint.

    None: from scratch, or a dry run found none.
    """
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.checkpoint.locate import locate, weights_of

    if args.from_scratch:
        return card, None
    start = locate(
        weights_of(card),
        given=args.nemo_checkpoint,
        assets_dir=args.cosmos_assets_dir,
        download=not args.dry_run,
    )
    return with_overrides(card, read_card_file(start)) if start is not None else card, start


def _serve(asked: Asked, company: "Company", environ: Mapping[str, str]) -> int:
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.job import device_of
    from cosmos_nemo.training.post_train import state_to_resume
    from cosmos_nemo.training.prepared_folder import PreparedFolder
    from cosmos_nemo.training.settings import validate

    flags, ranks, settings = asked.flags, company.ranks, asked.run.settings
    num_ranks = ranks.num_ranks
    if asked.dry_run:  # plans for the ranks that the flags ask for, whether or not they run
        num_ranks = max(num_ranks, settings.tensor_parallel * settings.context_parallel)
    validate(settings, asked.run.card, num_ranks=num_ranks)
    state = state_to_resume(asked.run)
    if state is not None:  # the weights that the run began with are needed no more
        card, start = with_overrides(asked.run.card, read_card_file(state)), None
    else:
        card, start = _card_and_start(asked.run.card, flags)
    validate(settings, card, num_ranks=num_ranks)
    run = replace(asked.run, card=card, start=start)
    data = PreparedFolder(flags.data_path, cache_bytes=int(flags.cache_gib * 2**30))
    data.check(card)
    device = device_of(ranks)
    if ranks.rank == 0:
        begin = _beginning(state, start, from_scratch=flags.from_scratch)
        print(_describe(run, data, begin=begin, num_ranks=num_ranks, device=device))
    if asked.dry_run:
        return 0
    check_same_device(company, device.type)
    return _train(run, flags, data, company, device)


def _beginning(state: Path | None, start: Path | None, *, from_scratch: bool) -> str:
    if state is not None:
        return f"continuing {state}"
    if from_scratch:
        return "from scratch"
    return f"from {start}" if start is not None else "weights not here: a run would look for them on the hub"


def _train(
    run: "Run",
    flags: argparse.Namespace,
    data: "PreparedFolder",
    company: "Company",
    device: "torch.device",
) -> int:
    import torch

    from cosmos_nemo.parallel.groups import start
    from cosmos_nemo.training.post_train import plan_of, post_train

    plan = plan_of(run.settings, num_ranks=company.ranks.num_ranks)
    groups = start(company.ranks, plan=plan, store=company.store, device=device)
    ended = post_train(
        run,
        data,
        groups=groups,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        facts={"data": str(flags.data_path), "versions": versions()},
        on_step=_progress(run, groups),
        wants_to_stop=_terminated(),
    )
    if groups.rank == 0:
        _report(ended, device)
    return 0 if ended.is_complete else _TERMINATED


def _describe(
    run: "Run", data: "PreparedFolder", *, begin: str, num_ranks: int, device: "torch.device"
) -> str:
    from cosmos_nemo.training.memory import predict_memory
    from cosmos_nemo.training.objective import noise_levels, objective_of
    from cosmos_nemo.training.post_train import plan_of
    from cosmos_nemo.training.update.choose import form_of_update

    settings, plan = run.settings, plan_of(run.settings, num_ranks=num_ranks)
    replicas = plan.replicas * plan.cp
    form = form_of_update(settings, num_replicas=replicas, device=device)
    memory = predict_memory(
        run.card.network,
        settings,
        latent_THW=data.latent_shape[1:],
        num_replicas=replicas,
        distributed=form == "distributed",
        weights_in_bfloat16=device.type == "cuda",
    )
    objective = objective_of(run.card, num_latent_frames=data.latent_shape[1])
    parts = {
        name: getattr(memory, name) / 2**30
        for name in ("weights", "gradients", "optimizer", "average", "activations")
    }
    return "\n".join(
        [
            f"{run.card.name}, {begin}",
            f"{len(data)} samples, latent {' x '.join(map(str, data.latent_shape))}, {data.fps:g} fps: "
            f"{settings.global_batch_size / len(data):.3g} epochs a step",
            f"noise levels: {noise_levels(settings, objective)}",
            f"{num_ranks} rank(s): data parallel {plan.replicas} x context parallel {plan.cp} x tensor "
            f"parallel {plan.tp}; {form} optimizer on {device.type}",
            f"memory predicted for each rank: {memory.total / 2**30:.1f} GiB ("
            + ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
            + f") and {memory.host / 2**30:.1f} GiB of host memory, for {memory.num_parameters:,} parameters",
        ]
    )


def _progress(run: "Run", groups: "Groups") -> "Callable[[StepReport], None]":
    if groups.rank != 0:
        return lambda report: None
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def advance(report: "StepReport") -> None:
        nonlocal bar
        if bar is None:
            total = run.settings.num_steps
            bar = tqdm(desc="train", total=total, initial=report.step - 1, unit="step", dynamic_ncols=True)
        bar.set_postfix(loss=f"{report.loss:.4f}", refresh=False)
        bar.update()
        if report.step == run.settings.num_steps:
            bar.close()

    return advance


def _terminated() -> Callable[[], bool]:
    """True once SIGTERM has come (scancel, preemption): the step is finished and saved first."""
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGTERM, note)
    return lambda: came


def _report(ended: "Ended", device: "torch.device") -> None:
    import torch

    from cosmos_nemo.training.nemo_checkpoint import STATE

    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of GPU memory")
    if not ended.is_complete:
        has_state = ended.checkpoint is not None and (ended.checkpoint / STATE).is_dir()
        way_on = "the same command with --resume goes on" if has_state else "no training state was written"
        print(f"stopped after step {ended.step}; {way_on}")
