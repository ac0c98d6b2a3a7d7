"""One rank's update against torch's own AdamW and clipping. Several ranks: tests/parallel."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.training.settings import TrainingSettings
from cosmos_nemo.training.update import replicated
from cosmos_nemo.training.update.replicated import Replicated
from tests.fakes import CPU, tiny_network

SETTINGS = TrainingSettings(learning_rate=1e-3, clip_norm=0.5, weight_decay=0.1)


def network(dtype: torch.dtype = torch.float32) -> DiT:
    return tiny_network(dtype=dtype).requires_grad_(True).train()


def update_of(module: nn.Module, settings: TrainingSettings = SETTINGS) -> Replicated:
    return Replicated(module, settings=settings, groups=start_alone(CPU))


def loss_of(module: DiT, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = module.shape
    x_BCTHW = torch.randn(1, shape.latent_channels, 2, 4, 4, generator=generator)
    text_BLD = torch.randn(1, shape.text_length, shape.text_dim, generator=generator)
    out = module(
        x_BCTHW,
        modulation=module.modulate(torch.randn(1, generator=generator)),
        text=module.encode_text(text_BLD),
        positions=module.positions((2, 4, 4), fps=24),
    )
    return (out - torch.randn(out.shape, generator=generator)).square().mean()


def reference(module: DiT, settings: TrainingSettings) -> torch.optim.Optimizer:
    norms = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    groups = [
        {"params": others, "weight_decay": settings.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.adam_betas, foreach=False)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6, 0.0])
def test_three_steps_are_those_of_torchs_adamw_on_the_mean_of_the_gradients(clip_norm: float) -> None:
    settings = replace(SETTINGS, clip_norm=clip_norm)
    ours, theirs = network(), network()
    update, adam = update_of(ours, settings), reference(theirs, settings)
    for step in range(3):
        for micro in range(2):
            (loss_of(ours, seed=2 * step + micro) / 2).backward()
        norm = update.step(1e-3 * (step + 1))
        sum(loss_of(theirs, seed=2 * step + micro) / 2 for micro in range(2)).backward()  # type: ignore[union-attr]
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or torch.inf)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        adam.step()
        adam.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-5)
        assert clip_norm != 0.5 or norm > 0.5, "nothing is clipped"
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-5, msg=name)


def test_gradients_are_cleared_by_a_step_and_held_nowhere_twice() -> None:
    module = network()
    update = update_of(module)
    loss_of(module, seed=0).backward()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert update.gradients.keys() == dict(module.named_parameters()).keys()
    update.step(1e-3)
    assert update.gradients == {}
    assert all(shard.master.grad is None for shard in update.shards)


def test_weight_decay_leaves_the_norms_alone() -> None:
    module = network()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    update = update_of(module, replace(SETTINGS, weight_decay=0.5))
    (loss_of(module, seed=0) * 0).backward()
    update.step(0.1)
    for name, parameter in module.named_parameters():
        kept = 1.0 if parameter.ndim == 1 else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter, before[name] * kept, rtol=1e-6, atol=0, msg=name)
    assert any(parameter.ndim == 1 for parameter in module.parameters())


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    module = network(torch.bfloat16)
    update = update_of(module, replace(SETTINGS, learning_rate=1e-6, weight_decay=0.0))
    assert all(shard.master.dtype == torch.float32 for shard in update.shards)
    first = [shard.master.clone() for shard in update.shards]
    shown = [parameter.detach().clone() for parameter in module.parameters()]
    loss_of(module, seed=0).backward()
    update.step(1e-6)
    changed = total = 0
    for shard, start, weight in zip(update.shards, first, shown, strict=True):
        moved = (shard.master - start).abs()
        ulp = torch.maximum(start.abs() * 2**-8, torch.tensor(2.0**-133))
        assert (moved[start.abs() > 1e-3] < ulp[start.abs() > 1e-3]).all()
        assert (moved > 0).float().mean() > 0.01, shard.name
        assert torch.equal(shard.parameter.flatten(), shard.master.bfloat16())
        changed += int((shard.parameter != weight).sum())
        total += weight.numel()
    assert changed < 0.02 * total
    for _ in range(60):
        loss_of(module, seed=0).backward()
        update.step(5e-5)
    far = sum(int((s.parameter != weight).sum()) for s, weight in zip(update.shards, shown, strict=True))
    assert far > 0.3 * total, "the small steps are lost"


def test_gradients_are_kept_in_the_dtype_asked_for() -> None:
    for dtype in ("float32", "bfloat16"):
        module = network(torch.bfloat16)
        update = update_of(module, replace(SETTINGS, gradient_dtype=dtype))
        for seed in range(2):
            loss_of(module, seed=seed).backward()
        assert {gradient.dtype for gradient in update.gradients.values()} == {getattr(torch, dtype)}


def test_many_small_bfloat16_gradients_add_up_in_float32() -> None:
    module = network(torch.bfloat16)
    update = update_of(module)
    weight = module.final_layer.linear.weight
    for _ in range(300):
        weight.sum().backward()
    assert torch.equal(
        update.gradients["final_layer.linear.weight"], torch.full(weight.shape, 300.0, dtype=torch.float32)
    )


def test_portions_change_neither_weights_nor_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (2**28, 5000):
        monkeypatch.setattr(replicated, "_AT_ONCE", at_once)
        module = network()
        update = update_of(module)
        for step in range(2):
            loss_of(module, seed=step).backward()
            update.step(1e-3)
        moments = [moment for shard in update.shards for moment in update.moments(shard).values()]
        results.append((len(update.portions), [*module.parameters(), *moments]))
    (one, whole), (many, parts) = results
    assert one == 1 and many > 5
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_moments_and_the_step_count_continue_adam_where_it_was() -> None:
    ours = network()
    update = update_of(ours)
    for seed in range(2):
        loss_of(ours, seed=seed).backward()
        update.step(1e-3)
    other = network()
    continued = update_of(other)
    for old, new in zip(update.shards, continued.shards, strict=True):
        new.master.copy_(old.master)
        for name, moment in continued.moments(new).items():
            moment.copy_(update.moments(old)[name])
    continued.set_step(2)
    continued.show_masters()
    for module, each in ((ours, update), (other, continued)):
        loss_of(module, seed=2).backward()
        each.step(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))


def test_the_masters_can_be_shown() -> None:
    module = network()
    update = update_of(module)
    for shard in update.shards:
        shard.master.fill_(3.0)
    update.show_masters()
    assert all((parameter == 3).all() for parameter in module.parameters())


def test_a_gradient_that_is_no_number_is_reported() -> None:
    module = network()
    update = update_of(module)
    (loss_of(module, seed=0) * float("nan")).backward()
    assert not update.step(1e-3) < float("inf")


def test_nothing_outlives_a_training() -> None:
    """A tensor's hook that led back to the update kept network, gradients, sockets and threads for ever."""
    module = network()
    update = update_of(module)
    module_gone, update_gone = weakref.ref(module), weakref.ref(update)
    del module, update
    gc.collect()
    assert module_gone() is None
    assert update_gone() is None
