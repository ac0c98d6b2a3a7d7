from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.cosmos1_dit.model import Cosmos1DiT
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.denoise import Denoise
from tests.fakes import CPU, TINY

CHECKPOINT = Path(__file__).parents[2] / "golden/nemo_text_torch_dist"
CARD = replace(CARDS["Cosmos-Nano-Text2World"], network=TINY)
REQUEST = Text2WorldRequest(prompt="x", height=32, width=48, num_frames=9, num_steps=2, guidance=2.0, seed=3)
PROMPT, NEGATIVE = torch.randn(2, 1, 12, 32, generator=torch.Generator().manual_seed(0))


def _stage(**changes: Any) -> Denoise:
    return Denoise(
        card=CARD,
        checkpoint=CHECKPOINT,
        groups=start_alone(CPU),
        backend=torch_backend(),
        device=CPU,
        dtype=torch.float32,
        **changes,
    )


def _latent(
    request: Text2WorldRequest = REQUEST, prompt: Tensor = PROMPT, negative: Tensor = NEGATIVE
) -> Tensor:
    with _stage() as denoise:
        return denoise(request, prompt, negative)


class _Calls:
    """Counts network calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        forward = Cosmos1DiT.forward

        def counted(network: Cosmos1DiT, *args: Any, **kwargs: Any) -> Tensor:
            self.count += 1
            return forward(network, *args, **kwargs)

        monkeypatch.setattr(Cosmos1DiT, "forward", counted)


@pytest.mark.parametrize(("guidance", "calls"), [(2.0, 6), (0.0, 3), (-1.0, 3)])
def test_one_branch_alone_is_computed_where_the_other_has_no_weight(
    guidance: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = _Calls(monkeypatch)
    _latent(replace(REQUEST, guidance=guidance))  # RES: 2 steps and the clean-up call
    assert counted.count == calls


def test_guidance_0_looks_at_the_prompt_alone_and_minus_1_at_the_negative_alone() -> None:
    for guidance, prompt, negative in (
        (0.0, PROMPT, torch.zeros_like(NEGATIVE)),
        (-1.0, 0 * PROMPT, NEGATIVE),
    ):
        request = replace(REQUEST, guidance=guidance)
        assert torch.equal(_latent(request), _latent(request, prompt, negative))


def test_guidance_is_cond_plus_g_times_the_difference() -> None:
    """One Euler step from sigma 80 to 0 lands on x0, which is linear in the branches."""
    one_step = replace(REQUEST, sampler="EDM", num_steps=1)
    cond, uncond = (_latent(replace(one_step, guidance=g)) for g in (0.0, -1.0))
    guided = _latent(replace(one_step, guidance=2.0))
    assert (cond - uncond).abs().max() > 1e-3
    torch.testing.assert_close(guided, cond + 2 * (cond - uncond), rtol=0, atol=1e-5 * float(cond.std()))


def test_the_latent_is_the_sample_over_sigma_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network works on half the normalised latent; the tokenizer on the normalised one itself."""

    class Ones:
        def sample(self, denoise: object, noise: Tensor, **_: object) -> Tensor:
            return torch.ones_like(noise)

    monkeypatch.setitem(SAMPLERS, "RES", Ones())  # type: ignore[arg-type]
    assert torch.equal(_latent(), torch.full((1, 16, 2, 4, 6), 2.0))


def test_the_seed_decides_and_nothing_else_is_random() -> None:
    first = _latent()
    torch.manual_seed(99)
    assert torch.equal(first, _latent())
    assert not torch.equal(first, _latent(replace(REQUEST, seed=4)))
    assert draw_noise((2, 3), seed=3).equal(draw_noise((2, 3), seed=3))


def test_an_offloaded_network_makes_the_same_latent_when_it_comes_back() -> None:
    stage = _stage(offload=True)
    latents = []
    for _ in range(2):
        with stage as denoise:
            latents.append(denoise(REQUEST, PROMPT, NEGATIVE))
    assert stage.module is not None and all(p.numel() == 0 for p in stage.module.parameters())
    assert torch.equal(*latents)


def test_every_denoiser_call_is_told() -> None:
    steps: list[tuple[int, int]] = []
    with _stage() as denoise:
        denoise(REQUEST, PROMPT, NEGATIVE, on_step=lambda step, total: steps.append((step, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_rounded_rotary_angles_reach_the_network() -> None:
    with _stage(rope_dtype=torch.bfloat16) as denoise:
        rounded = denoise(replace(REQUEST, fps=30), PROMPT, NEGATIVE)
    assert not torch.equal(rounded, _latent(replace(REQUEST, fps=30)))
