"""Batches of videos that go on from given frames, beside the pipelines; deliberate mistakes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from benchmarks.nano_generate import MISTAKES_OF, Generator, nano_job
from benchmarks.nano_given import denoiser_of, encoded_given, told
from cosmos_nemo.catalog import CARDS, ModelCard, Task
from cosmos_nemo.job import Job
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.pipelines.video2world import Video2World
from cosmos_nemo.pipelines.world_interpolator import WorldInterpolator
from cosmos_nemo.request import InterpolationRequest, Video2WorldRequest
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.tools.standin import write_standin
from tests.fakes import CPU

VIDEO2WORLD, INTERPOLATOR = CARDS["Cosmos-Nano-Video2World"], CARDS["Cosmos-Nano-WorldInterpolator"]
PREDICT2 = CARDS["Cosmos-Nano-Predict2-Video2World"]
MODELS = pytest.mark.parametrize("card", [VIDEO2WORLD, PREDICT2, INTERPOLATOR], ids=lambda card: card.name)
PROMPTS = ("A red ball moves up on a gray background.", "A white square bounces on a dark background.")
SMALL = ("--height=64", "--width=64", "--num_steps=2", "--seed=5", "--backend=torch")
CLASSES = {Task.VIDEO2WORLD: Video2World, Task.WORLD_INTERPOLATOR: WorldInterpolator}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin([VIDEO2WORLD, PREDICT2, INTERPOLATOR], folder, seed=0, layout="folder")
    return folder


@pytest.fixture(autouse=True)
def _lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in network that answers strongly to its text and its positions."""
    real = Generator.__init__

    def strengthened(self: Generator, job: Job, **options: Any) -> None:
        real(self, job, **options)
        self.denoise.reside()
        assert self.denoise.module is not None
        generator = torch.Generator().manual_seed(0)
        for parameter in self.denoise.module.parameters():
            scale = 3.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    monkeypatch.setattr(Generator, "__init__", strengthened)


def job_of(assets: Path, card: ModelCard, *flags: str) -> Job:
    frames = ["--num_video_frames=17"] if card.task is Task.VIDEO2WORLD else []
    return nano_job([f"--cosmos_assets_dir={assets}", *SMALL, *frames, *flags], device=CPU, model=card.name)


def frames_of(count: int, *, seed: int = 0) -> Tensor:
    dice = numpy.random.RandomState(seed)
    coarse = dice.randint(0, 255, (2, count, 8, 8, 3)).astype(numpy.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=2).repeat(8, axis=3))


def make(job: Job, given: Tensor, *, mistake: str = "none", batch_size: int = 2) -> Tensor:
    generator = Generator(job, mistake=mistake)
    return torch.stack(list(generator(PROMPTS, seeds=(5, 6), batch_size=batch_size, given_NTHWC=given)))


def far(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in levels."""
    return float((ours.int() - theirs.int()).abs().max())


@pytest.mark.parametrize(
    ("card", "num_given"), [(VIDEO2WORLD, 1), (VIDEO2WORLD, 9), (PREDICT2, 1), (PREDICT2, 5)]
)
def test_a_batch_of_one_is_the_pipelines_chunk(
    assets: Path, tmp_path: Path, card: ModelCard, num_given: int
) -> None:
    job, given = job_of(assets, card), frames_of(num_given)
    request = job.request
    assert isinstance(request, Video2WorldRequest)
    request = replace(request, num_input_frames=num_given)
    _is_the_pipelines(job, request, given, tmp_path, shape=(17, 64, 64, 3))


def test_a_batch_of_one_is_the_pipelines_clip(assets: Path, tmp_path: Path) -> None:
    job, given = job_of(assets, INTERPOLATOR), frames_of(2)
    assert isinstance(job.request, InterpolationRequest)
    _is_the_pipelines(job, job.request, given, tmp_path, shape=(10, 64, 64, 3))


def _is_the_pipelines(job: Job, request: Any, given: Tensor, folder: Path, *, shape: tuple[int, ...]) -> None:
    generator = Generator(job)
    pipeline = CLASSES[job.card.task](
        text_encoder=generator.text_encoder,
        denoise=generator.denoise,
        tokenizer=generator.tokenizer,
        text_guard=Skip(),
        upsampler=Skip(),
        video_guard=Skip(),
        ranks=start_alone(CPU).replica,
    )
    videos = []
    for number, frames_THWC in enumerate(given):
        numpy.save(folder / f"{number}.npy", frames_THWC.numpy())
        video = pipeline(replace(request, prompt=PROMPTS[0], visual_input=folder / f"{number}.npy"))
        assert video is not None
        videos.append(video.frames_THWC)
    [found] = generator(PROMPTS[:1], seeds=(5,), batch_size=1, given_NTHWC=given[:1])
    assert found.shape == videos[0].shape == shape
    assert far(found, videos[0]) <= 1
    assert far(found, videos[1]) > 5


@MODELS
def test_a_video_does_not_depend_on_its_batch(assets: Path, card: ModelCard) -> None:
    job, given = job_of(assets, card), frames_of(2 if card is INTERPOLATOR else 1)
    both, alone = make(job, given), make(job, given, batch_size=1)
    assert far(both, alone) <= 1 and far(both[0], both[1]) > 20


@pytest.mark.parametrize(
    ("card", "mistake"),
    [
        (card, name)
        for card in (VIDEO2WORLD, PREDICT2, INTERPOLATOR)
        for name in MISTAKES_OF[card.task]
        if name != "none"
    ],
)
def test_every_mistake_changes_every_video(assets: Path, card: ModelCard, mistake: str) -> None:
    job, given = job_of(assets, card), frames_of(2 if card is INTERPOLATOR else 1)
    for right, wrong in zip(make(job, given), make(job, given, mistake=mistake), strict=True):
        assert far(right[1:9], wrong[1:9]) > 5


def test_a_mistake_of_another_task_is_refused(assets: Path) -> None:
    with pytest.raises(AssertionError):
        Generator(job_of(assets, VIDEO2WORLD), mistake="last_wrong")


def test_each_mistake_is_the_one_it_is_called(assets: Path) -> None:
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pair = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    x, sigma = 5 * noise, torch.tensor(5.0)
    right = told(pair, noise, INTERPOLATOR, mistake="none")
    assert right.frames.is_given_T.tolist() == [True, False, True]
    torch.testing.assert_close(right.frames.latent_BCTHW[:, :, [0, -1]], 0.5 * pair)
    assert right.mask_B1THW[0, 0, :, 0, 0].tolist() == [1, 0, 1]
    off = told(pair, noise, INTERPOLATOR, mistake="mask_off")
    assert not off.mask_B1THW.any() and torch.equal(off.frames.latent_BCTHW, right.frames.latent_BCTHW)
    shifted = told(pair, noise, INTERPOLATOR, mistake="given_shifted")
    assert shifted.frames.is_given_T.tolist() == [True, True, False]
    torch.testing.assert_close(shifted.frames.latent_BCTHW[:, :, 1], 0.5 * pair[:, :, 0])
    blind = told(pair, noise, INTERPOLATOR, mistake="given_noise")
    from cosmos_nemo.sampling.given import GivenDenoiser

    seen = GivenDenoiser(lambda x, _: x, blind.frames, 0.5).given(x, sigma)  # type: ignore[arg-type]
    both = torch.stack([seen[:, :, [0, -1]].flatten(), pair.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1
    job, frames = job_of(assets, INTERPOLATOR), frames_of(2)[:1]
    with Generator(job).tokenizer as tokenizer:
        wrong = encoded_given(tokenizer, frames, job, mistake="last_wrong")
        same = encoded_given(tokenizer, frames[:, [0, 0]], job, mistake="none")
    assert torch.equal(wrong, same)


@pytest.mark.parametrize(("mistake", "seen_of"), [("none", "given"), ("given_noise", "noise")])
def test_predict2_keeps_its_frames_whatever_the_network_is_shown(mistake: str, seen_of: str) -> None:
    noise = torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def network(x_BCTHW: Tensor, levels_T: Tensor) -> Tensor:
        assert levels_T.shape == (3,) and levels_T[0] < 1e-3 < levels_T[1]
        seen.append(x_BCTHW)
        return torch.zeros_like(x_BCTHW)

    frames = told(given, noise, PREDICT2, mistake=mistake)
    clean = denoiser_of(network, frames, PREDICT2)(5 * noise, torch.tensor(5.0))
    torch.testing.assert_close(clean[:, :, :1], given)
    torch.testing.assert_close(seen[0][:, :, :1], {"given": given, "noise": noise[:, :, :1]}[seen_of])
    assert frames.mask_B1THW[:, 0, :, 0, 0].tolist() == [[1, 0, 0]] * 2
