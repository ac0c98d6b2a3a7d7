"""The same tokens make the same latents under every plan."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.plan import Plan
from tests.parallel import diffusion_decoder_worker as worker
from tests.parallel import launcher

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.tools.standin_diffusion_decoder import write_diffusion_decoder

    path = tmp_path_factory.mktemp("latents")
    write_diffusion_decoder(worker.SHAPE, path / "decoder", seed=3)
    launcher.run_ranks(4, HERE / "diffusion_decoder_worker.py", str(path), timeout=240)
    return path


def _latents(folder: Path, plan: Plan, rank: int = 0) -> list[Tensor]:
    return list(torch.load(folder / f"{worker.name_of(plan)}_rank{rank}.pt", weights_only=True))


@pytest.mark.parametrize("plan", worker.PLANS[1:], ids=worker.name_of)
def test_every_plan_makes_the_latents_of_one_rank(folder: Path, plan: Plan) -> None:
    one, many = _latents(folder, worker.PLANS[0]), _latents(folder, plan)
    assert [latent.shape for latent in many] == [(1, 16, 8, 10, 10), (1, 16, 3, 10, 10)]
    for alone, together in zip(one, many, strict=True):
        assert (together - alone).abs().max() <= 1e-5 * alone.std()


@pytest.mark.parametrize("plan", worker.PLANS[1:], ids=worker.name_of)
def test_every_rank_of_a_plan_has_the_same_bits(folder: Path, plan: Plan) -> None:
    first, *others = (_latents(folder, plan, rank) for rank in range(plan.num_ranks))
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_the_latents_depend_on_the_tokens_and_not_only_on_the_noise(folder: Path) -> None:
    """Else the equalities above would hold for a network whose output no plan ever reaches."""
    from cosmos_nemo.models.common.backend import torch_backend
    from cosmos_nemo.parallel.groups import start_alone
    from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder

    device = torch.device("cpu")
    stage = DiffusionDecoder(
        shape=worker.SHAPE,
        checkpoint=folder / "decoder",
        groups=start_alone(device),
        backend=torch_backend(),
        device=device,
        dtype=torch.float32,
    )
    with stage as decode:
        others = decode(worker.IDS_BTHW.flip(1), seed=7, num_steps=3)
    for one, other in zip(_latents(folder, worker.PLANS[0]), others, strict=True):
        assert one.std() > 0.05
        assert (one - other).abs().max() > 0.1 * one.std()
