"""NeMo's checkpoint calls on a machine without CUDA."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def nemo_on_cpu() -> Iterator[None]:
    """Lets NeMo save and load checkpoints where there is no CUDA device; where there is one, does nothing.

    NeMo and Megatron ask for the current CUDA device, wait for it, and move what was loaded to it. Inside,
    and only there, the device is the CPU, waiting does nothing, and nothing is moved.
    """
    import torch

    with ExitStack() as stack:
        if not torch.cuda.is_available():
            from nemo.lightning.io import pl

            stack.enter_context(patch.object(torch.cuda, "synchronize", _nothing))
            stack.enter_context(patch.object(torch.cuda, "current_device", lambda: torch.device("cpu")))
            stack.enter_context(patch.object(pl, "_fix_tensors_device", lambda checkpoint: checkpoint))
        yield


def cpu_trainer() -> Any:
    """A NeMo Trainer whose strategy loads and saves weights on one CPU process."""
    from nemo.lightning import MegatronStrategy, Trainer

    strategy = MegatronStrategy(
        ddp="pytorch",
        setup_optimizers=False,
        init_model_parallel=False,
        ckpt_save_optimizer=False,
        always_save_context=True,
    )
    return Trainer(devices=1, accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False)


def _nothing(*_: Any, **__: Any) -> None:
    pass
