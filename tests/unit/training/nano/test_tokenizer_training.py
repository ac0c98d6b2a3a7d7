from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.training.nano import tokenizer_training
from cosmos_nemo.training.nano.tokenizer_training import (
    TokenizerStateError,
    Training,
    TrainingStopped,
    latent_noise,
    orthogonalised,
    reconstruction_loss,
    run,
    with_noise,
)

SETTINGS = {"shape": "small", "num_steps": 4}


class Network(nn.Module):
    """A matrix, a gain of as many axes as a diffusers' norm has, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        dice = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5, generator=dice))
        self.gamma = nn.Parameter(torch.ones(3, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))


class Objective(nn.Module):
    """How far the network is from giving back the first three of five values."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        made = values @ self.network.weight.T * self.network.gamma[:, 0, 0] + self.network.bias
        return (made - values[:, :3]).square().mean()


def inputs(step: int) -> tuple[Tensor, ...]:
    return (torch.randn(8, 5, generator=torch.Generator().manual_seed(step)),)


def training(num_steps: int = 4) -> Training:
    network = Network()
    return Training(
        network, Objective(network), inputs, learning_rate=0.1, num_steps=num_steps, uses_graphs=False
    )


def finished(state: Path | None = None, **changes: object) -> Training:
    it = training()
    options = {"save_every_s": 1e9, "on_step": lambda step, loss: None} | changes
    run(it, settings=SETTINGS, state_path=state, **options)  # type: ignore[arg-type]
    return it


def interrupted(step: int, loss: float) -> None:
    if step == 2:
        raise KeyboardInterrupt


def test_a_step_of_the_optimiser_is_nearly_orthogonal() -> None:
    matrices = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 2, 40)
    for each in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(each))
        assert values.min() > 0.5 and values.max() < 1.3


def test_the_loss_falls_and_the_average_follows() -> None:
    it = training(40)
    losses = [float(it.advance()) for _ in range(40)]
    assert losses[-1] < 0.4 * losses[0]
    distance = (it.average["weight"] - it.network.weight).abs().max()
    assert 0 < distance < 0.3 * (it.average["weight"] - Network().weight).abs().max()


def test_gains_are_no_matrices_whatever_their_axes() -> None:
    orthogonal, rest = training().optimizers
    assert [tuple(each.shape) for each in orthogonal.param_groups[0]["params"]] == [(3, 5)]
    assert [tuple(each.shape) for each in rest.param_groups[0]["params"]] == [(3, 1, 1), (3,)]


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    it = training(100)
    rates = [it._relative_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and max(rates) > 0.99 and rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)


def test_an_interrupted_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    state, steps = tmp_path / "new" / "state.pt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        finished(state, save_every_s=-1.0, on_step=interrupted)
    continued = finished(state, on_step=lambda step, loss: steps.append(step))
    assert steps == [3, 4]
    whole = finished()
    assert torch.equal(continued.network.weight, whole.network.weight)
    assert all(torch.equal(continued.average[name], values) for name, values in whole.average.items())
    assert [path.name for path in state.parent.iterdir()] == ["state.pt"]


def test_a_training_whose_time_is_up_stops_after_a_step_and_goes_on_there(tmp_path: Path) -> None:
    state, steps = tmp_path / "state.pt", list[int]()
    with pytest.raises(TrainingStopped, match="after step 1") as stopped:
        finished(state, wants_to_stop=lambda: True)
    assert stopped.value.step == 1
    last = finished(
        state, wants_to_stop=lambda: len(steps) == 2, on_step=lambda step, loss: steps.append(step)
    )
    assert steps == [2, 3, 4], "the last step is not stopped after"
    assert torch.equal(last.network.weight, finished().network.weight)


def test_other_optimisers_and_another_average_can_be_asked_for() -> None:
    network = Network()
    it = Training(
        network,
        Objective(network),
        inputs,
        learning_rate=0.1,
        num_steps=4,
        uses_graphs=False,
        optimizers_of=lambda parameters, rate: (torch.optim.SGD(list(parameters.values()), lr=rate),),
        average_decay=0.0,
    )
    (gradient,) = torch.autograd.grad(Objective(network)(*inputs(0)), network.bias)
    before = network.bias.detach().clone()
    it.advance()
    # Of the first of four steps half a cosine leaves everything, and the gradient is clipped.
    step = before - network.bias
    assert torch.nn.functional.cosine_similarity(step, gradient, dim=0) > 0.999
    assert torch.equal(it.average["weight"], network.weight)


def test_a_finished_training_takes_no_further_step(tmp_path: Path) -> None:
    first, steps = finished(tmp_path / "state.pt"), list[int]()
    again = finished(tmp_path / "state.pt", on_step=lambda step, loss: steps.append(step))
    assert not steps and torch.equal(first.network.weight, again.network.weight)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    tokenizer_training._write_state(tmp_path / "state.pt", {"settings": SETTINGS | {"num_steps": 9}})
    with pytest.raises(TokenizerStateError, match="with num_steps 9, not 4: remove it"):
        finished(tmp_path / "state.pt")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign"])
def test_a_damaged_state_is_refused_and_left_alone(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    finished(path)
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    before = path.read_bytes()
    with pytest.raises(TokenizerStateError, match=r"state\.pt cannot be read.*remove it"):
        finished(path)
    assert path.read_bytes() == before


def test_errors_count_by_their_pixels_weight() -> None:
    made, wanted, latent = torch.zeros(1, 3, 1, 1, 2), torch.zeros(1, 3, 1, 1, 2), torch.zeros(1, 2, 1, 1, 1)
    wanted[..., 1] = 0.5
    weight = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
    loss = reconstruction_loss(made, wanted, weight=weight, latent=latent)
    assert float(loss) == pytest.approx(0.75 * (0.5 + 0.25))
    assert reconstruction_loss(made, wanted, weight=weight, latent=latent + 10) > loss


def test_noise_grows_with_the_latent_and_is_small() -> None:
    noise = latent_noise((64, 2, 3, 4, 4), dice=torch.Generator().manual_seed(0))
    levels = noise.std(dim=(1, 2, 3, 4))
    assert 0 < levels.min() < 0.03 and 0.12 < levels.max() < 0.18
    latent = torch.randn(64, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    ratio = (with_noise(10 * latent, noise) - 10 * latent) / (with_noise(latent, noise) - latent)
    torch.testing.assert_close(ratio.median(), torch.tensor(10.0), rtol=1e-3, atol=0)


def test_each_size_of_inputs_is_recorded_once_and_never_over_another_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[torch.Size] = []

    def record(module: nn.Module, samples: tuple[Tensor, ...]) -> nn.Module:
        """As torch.cuda.make_graphed_callables does: another forward, for these sizes alone."""
        original, sizes = module.forward, samples[0].shape
        assert "forward" not in vars(module)
        recorded.append(sizes)

        def forward(values: Tensor) -> Tensor:
            assert values.shape == sizes
            return original(values)

        module.forward = forward
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    network = Network()

    def ever_fewer(step: int) -> tuple[Tensor, ...]:
        return (inputs(step)[0][: 8 if step < 2 else 4],)

    it = Training(network, Objective(network), ever_fewer, learning_rate=0.1, num_steps=4, uses_graphs=True)
    for _ in range(4):
        it.advance()
    assert recorded == [(8, 5), (4, 5)]
    assert not torch.equal(it.network.weight, Network().weight)
