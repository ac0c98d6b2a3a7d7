import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_nemo.catalog import Family, TokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_dit.model import TokenDiT
from cosmos_nemo.parallel.groups import Groups, start_alone
from cosmos_nemo.plan import Plan
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.stages.decoder_windows import assemble
from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.tools.standin_diffusion_decoder import write_diffusion_decoder
from cosmos_nemo.tools.standin_tokenizer import write_released_tokenizer
from tests.fakes import CPU, TINY, FakeGroup, Threads, tiny_network

SHAPE = replace(
    TINY, family=Family.TOKEN_DECODER, token_vocab=50, token_dim=6, rope_ratios_THW=(1.0, 1.5, 1.5)
)
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "released"
    write_diffusion_decoder(SHAPE, path, seed=4)
    return path


def tokens(num_frames: int, seed: int = 0) -> Tensor:
    """[1, T, 2, 3]: a latent of 4 x 6 cells."""
    return torch.randint(50, (1, num_frames, 2, 3), generator=torch.Generator().manual_seed(seed))


def stage(
    folder: Path = Path("nowhere"), *, groups: Groups | None = None, **changes: Any
) -> DiffusionDecoder:
    options = {"shape": SHAPE, "checkpoint": folder, "dtype": torch.float32} | changes
    return DiffusionDecoder(groups=groups or start_alone(CPU), backend=torch_backend(), device=CPU, **options)


TEXT = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(9))


def lively(*, groups: Groups | None = None) -> DiffusionDecoder:
    """A stage whose network answers strongly to its text and tokens."""
    made = stage(groups=groups)
    made.module, made._resident, made.generic_text_BLD = tiny_network(SHAPE, seed=5), True, TEXT
    return made


def network_of(made: DiffusionDecoder) -> TokenDiT:
    assert isinstance(made.module, TokenDiT)
    return made.module


def branch(network: TokenDiT, text: Tensor, ids: Tensor, x: Tensor, sigma: float) -> Tensor:
    """F of one branch, by the network alone."""
    output: Tensor = network(
        x.float(),
        modulation=network.modulate(torch.tensor([sigma]).log() / 4),
        text=network.encode_text(text),
        positions=network.positions((8, 4, 6), fps=24),
        told_BCTHW=network.embed_ids(ids, (4, 6)),
    )
    return output.double()


def by_hand(network: TokenDiT, ids: Tensor, noise: Tensor, *, guidance: float = 1.8) -> Tensor:
    """Two Euler steps from 80 to 0.02 to 0; spec/predict1-autoregressive.md 5."""
    x = (80**2 + 1) ** 0.5 * noise.double()
    for now, then in ((80.0, 0.02), (0.02, 0.0)):
        variance = now**2 + 0.25
        scaled = x / variance**0.5
        cond = branch(network, TEXT, ids, scaled, now)
        uncond = branch(network, torch.zeros_like(TEXT), torch.zeros_like(ids), scaled, now)
        output = cond + guidance * (cond - uncond)
        x0 = 0.25 / variance * x + now * 0.5 / variance**0.5 * output
        x = x + (x - x0) / now * (then - now)
    return x / 0.5


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.double() - wanted).abs().max() < 1e-4 * wanted.std())


def test_a_sample_is_the_guidance_formula_with_no_text_and_the_token_0_unconditionally() -> None:
    made = lively()
    ids, noise = tokens(8), draw_noise((1, 16, 8, 4, 6), seed=3)
    [latent] = made(ids, seed=3, num_steps=STEPS)
    assert latent.dtype == torch.float32
    assert latent.shape == (1, 16, 8, 4, 6)
    assert close(latent, by_hand(network_of(made), ids, noise))
    assert not close(latent, by_hand(network_of(made), ids, noise, guidance=1.9))


def test_the_guidance_asked_for_is_used() -> None:
    made, noise = lively(), draw_noise((1, 16, 8, 4, 6), seed=3)
    [latent] = made(tokens(8), seed=3, num_steps=STEPS, guidance=0.7)
    assert close(latent, by_hand(network_of(made), tokens(8), noise, guidance=0.7))


def test_a_sample_takes_fifteen_steps_of_two_calls_and_tells_each() -> None:
    made, calls, seen = lively(), list[int](), list[tuple[int, int]]()
    network_of(made).register_forward_hook(lambda *_: calls.append(1))
    made(tokens(8), seed=0, on_step=lambda step, total: seen.append((step, total)))
    assert len(calls) == 30
    assert seen == [(step, 15) for step in range(1, 16)]


def test_progress_counts_the_steps_of_all_windows() -> None:
    made, seen = lively(), list[tuple[int, int]]()
    made(tokens(9), seed=0, num_steps=3, on_step=lambda step, total: seen.append((step, total)))
    assert seen == [(step, 6) for step in range(1, 7)]


def test_the_other_sampler_cleans_up_at_the_last_noise_level() -> None:
    made, seen = lively(), list[tuple[int, int]]()
    levels: list[float] = []
    network, modulate = network_of(made), network_of(made).modulate
    network.modulate = lambda c: (levels.append(float((4 * c).exp())), modulate(c))[1]  # type: ignore[method-assign]
    [latent] = made(tokens(8), seed=0, sampler="RES", num_steps=2, on_step=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert levels[0] == pytest.approx(80, rel=1e-4) and levels[-1] == pytest.approx(0.02, rel=1e-4)
    assert latent.isfinite().all()


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 9, 17])
def test_each_window_has_the_frames_of_the_video_that_are_in_it(num_frames: int) -> None:
    latents = lively()(tokens(num_frames), seed=0, num_steps=1)
    wanted = {1: [2], 2: [2], 5: [5], 8: [8], 9: [8, 3], 17: [8, 8, 5]}
    assert [latent.shape for latent in latents] == [(1, 16, t, 4, 6) for t in wanted[num_frames]]
    assert all(latent.isfinite().all() for latent in latents)


def test_the_tokens_of_a_short_video_go_on_backwards() -> None:
    made, ids = lively(), tokens(5)
    [latent] = made(ids, seed=3, num_steps=STEPS)
    whole = by_hand(network_of(made), ids[:, [0, 1, 2, 3, 4, 3, 2, 1]], draw_noise((1, 16, 8, 4, 6), seed=3))
    assert close(latent, whole[:, :, :5])


def test_each_window_is_a_sample_of_its_own_tokens_and_noise() -> None:
    made, ids = lively(), tokens(14)
    latents = made(ids, seed=3, num_steps=STEPS)
    noise = draw_noise((2, 16, 8, 4, 6), seed=3)
    for number, latent in enumerate(latents):
        window = ids[:, 6 * number : 6 * number + 8]
        assert close(latent, by_hand(network_of(made), window, noise[number : number + 1]))


def test_the_first_window_is_the_same_however_long_the_video_is() -> None:
    made, ids = lively(), tokens(17)
    [short] = made(ids[:, :8], seed=3, num_steps=STEPS)
    long = made(ids, seed=3, num_steps=STEPS)
    assert torch.equal(long[0], short)


def test_a_seed_makes_the_same_latent_and_another_seed_another() -> None:
    made, ids = lively(), tokens(5)
    torch.manual_seed(1)
    [first] = made(ids, seed=3, num_steps=STEPS)
    torch.manual_seed(2)
    [again] = made(ids, seed=3, num_steps=STEPS)
    [other] = made(ids, seed=4, num_steps=STEPS)
    assert torch.equal(again, first)
    assert (other - first).abs().max() > 0.1


def test_tokens_and_text_decide_the_latent() -> None:
    made, ids = lively(), tokens(5)
    [first] = made(ids, seed=3, num_steps=STEPS)
    [of_text] = made(ids, -TEXT, seed=3, num_steps=STEPS)
    [of_ids] = made(tokens(5, seed=1), seed=3, num_steps=STEPS)
    assert (of_text - first).abs().max() > 1e-2
    assert (of_ids - first).abs().max() > 1e-2
    assert torch.equal(made(ids, TEXT, seed=3, num_steps=STEPS)[0], first)


def test_ids_of_another_tokenizer_and_sizes_beyond_the_network_are_refused_with_a_sentence() -> None:
    made = lively()
    with pytest.raises(ValueError, match="from 0 to 49"):
        made(tokens(5) + 50, seed=0, num_steps=STEPS)
    with pytest.raises(ValueError, match=r"\(8, 34, 6\).*beyond the model's"):
        made(torch.zeros(1, 5, 17, 3, dtype=torch.long), seed=0, num_steps=STEPS)


def test_the_network_and_the_generic_text_are_those_of_the_folder(folder: Path) -> None:
    stored = torch.load(folder / "aux_vars.pt", weights_only=True)["context"]
    weights = torch.load(folder / "model.pt", weights_only=True)
    with stage(folder) as decode:
        network = network_of(decode)
        assert torch.equal(network.token_embedder.weight, weights["net.token_embedder.weight"].float())
        [generic] = decode(tokens(5), seed=0, num_steps=STEPS)
        [same] = decode(tokens(5), stored, seed=0, num_steps=STEPS)
        [other] = decode(tokens(5), -stored, seed=0, num_steps=STEPS)
    assert torch.equal(generic, same)
    assert not torch.equal(generic, other)


def test_rounded_rotary_angles_reach_the_network(folder: Path) -> None:
    with stage(folder, rope_dtype=torch.bfloat16) as decode:
        assert network_of(decode).rope_dtype == torch.bfloat16


def test_weights_are_in_the_stages_dtype_and_latents_in_float32(folder: Path) -> None:
    with stage(folder, dtype=torch.bfloat16) as decode:
        assert network_of(decode).dtype == torch.bfloat16
        [latent] = decode(tokens(5), seed=0, num_steps=STEPS)
    assert latent.dtype == torch.float32
    with stage(folder) as decode:
        [exact] = decode(tokens(5), seed=0, num_steps=STEPS)
    assert 0 < (latent - exact).norm() < 0.05 * exact.norm()


def test_an_offloaded_decoder_is_parked_between_calls_that_give_the_same_latent(folder: Path) -> None:
    kept, parked = stage(folder), stage(folder, offload=True)
    with kept as decode:
        [wanted] = decode(tokens(5), seed=0, num_steps=STEPS)
    for _ in range(2):
        with parked as decode:
            assert torch.equal(decode(tokens(5), seed=0, num_steps=STEPS)[0], wanted)
        assert {parameter.numel() for parameter in network_of(parked).parameters()} == {0}
    assert all(parameter.numel() for parameter in network_of(kept).parameters())


def test_a_decoder_is_parked_when_its_call_fails(folder: Path) -> None:
    made = stage(folder, offload=True)
    with pytest.raises(ValueError, match="from 0 to 49"), made as decode:
        decode(tokens(5) + 50, seed=0)
    assert {parameter.numel() for parameter in network_of(made).parameters()} == {0}


@pytest.fixture
def without_text(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "without"
    path.mkdir()
    (path / "model.pt").symlink_to(folder / "model.pt")
    return path


def test_a_missing_generic_text_stops_before_anything_is_loaded(
    without_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("cosmos_nemo.stages.diffusion_decoder.filled_network", load)
    monkeypatch.setattr("cosmos_nemo.stages.diffusion_decoder.open_network", load)
    made = stage(without_text)
    with pytest.raises(CheckpointError, match=r"has no aux_vars\.pt beside it"):
        made.check()
    with pytest.raises(CheckpointError, match=r"has no aux_vars\.pt beside it"), made:
        pass


def test_a_decoder_that_is_always_given_a_text_needs_no_generic_one(folder: Path, without_text: Path) -> None:
    made = stage(without_text, has_generic_text=False)
    made.check()
    text = torch.load(folder / "aux_vars.pt", weights_only=True)["context"]
    with made as decode, stage(folder) as other:
        [given] = decode(tokens(5), text, seed=0, num_steps=STEPS)
        [generic] = other(tokens(5), seed=0, num_steps=STEPS)
        assert torch.equal(given, generic)
        with pytest.raises(AssertionError, match="without its generic text"):
            decode(tokens(5), seed=0)


def test_a_folder_is_checked_without_reading_a_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmos_nemo.checkpoint.rules.Same.read", None)
    stage(folder).check()
    with pytest.raises(CheckpointError, match=r"token_embedder\.weight is \(50, 6\), not \(51, 6\)"):
        stage(folder, shape=replace(SHAPE, token_vocab=51)).check()
    with pytest.raises(CheckpointError, match="looks like a diffusion decoder"):
        stage(folder, shape=replace(SHAPE, num_layers=3)).check()


def test_another_models_checkpoint_is_refused_before_the_network_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_nemo.stages.guided_network.build_network", None)
    with pytest.raises(CheckpointError), stage(folder, shape=replace(SHAPE, num_layers=3)):
        pass


def test_frames_of_a_short_video_are_those_of_its_whole_window(tmp_path: Path) -> None:
    """Latents are cut before they are decoded, as upstream cuts frames: the tokenizer looks back alone."""
    shape = TokenizerShape(channels=6)
    write_released_tokenizer(shape, tmp_path, seed=0, layout="safetensors")
    ids = tokens(5)
    [cut] = lively()(ids, seed=0, num_steps=STEPS)
    [whole] = lively()(ids[:, [0, 1, 2, 3, 4, 3, 2, 1]], seed=0, num_steps=STEPS)
    with Tokenizer(
        shape=shape, folder=tmp_path, device=CPU, dtype=torch.float32, parts=("decoder",)
    ) as tokenizer:
        frames = assemble([tokenizer.decode(cut)], latent_frames=5)
        upstream = assemble([tokenizer.decode(whole)], latent_frames=5)
    assert frames.shape == (33, 32, 48, 3)
    assert (frames.int() - upstream.int()).abs().max() <= 1


def test_two_halves_of_the_ranks_make_the_latents_of_one_with_one_call_a_step_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = lively()(tokens(9), seed=3, num_steps=STEPS)
    network, alone, threads = tiny_network(SHAPE, seed=5), start_alone(CPU), Threads(2)
    ranks = []
    for rank in range(2):
        cfg: Any = FakeGroup(2, rank)
        one = lively(groups=replace(alone, plan=Plan(cfg=2), cfg=cfg))
        one.module = network
        ranks.append(one)
    monkeypatch.setattr(dist, "all_gather_into_tensor", threads.all_gather_into_tensor)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(threading.get_ident()))
    found: list[list[Tensor]] = [[], []]

    def work(rank: int) -> None:
        found[rank] = ranks[rank](tokens(9), seed=3, num_steps=STEPS)

    started = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(30)
    for latents in found:
        assert len(latents) == len(wanted) == 2
        assert all(torch.equal(one, other) for one, other in zip(latents, wanted, strict=True))
    assert sorted(calls.count(thread.ident or 0) for thread in started) == [2 * STEPS, 2 * STEPS]
