"""The diffusion decoder of the autoregressive models: its network, a whole sample, windows and blend."""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.models.token_dit.model import TokenDiT
from cosmos_nemo.sampling.denoiser import EdmDenoiser, guided
from cosmos_nemo.sampling.samplers import Sampler, euler_sampler
from cosmos_nemo.sampling.scaling import edm_scaling
from cosmos_nemo.stages.decoder_windows import blend, split_windows
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors
from cosmos_nemo.tools.checks.predict1_dit import by_place, inside, network_for, shape_of

_SPLIT = re.compile(r"outputs\.(split_(\d+))")


@dataclass(frozen=True)
class Told:
    """What a call of the network is told besides x and its noise."""

    text_BLD: Tensor
    ids_BTHW: Tensor
    padding_mask_B1HW: Tensor
    fps: float

    def nothing(self) -> "Told":
        """The unconditional branch."""
        text, ids = torch.zeros_like(self.text_BLD), torch.zeros_like(self.ids_BTHW)
        return replace(self, text_BLD=text, ids_BTHW=ids)


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Every output of the reference file; the network's, the sampler's, and those of whole windows."""
    yield from _windows(case, tensors)
    sampler = euler_sampler(sigma_max=case["sigma_max"], sigma_min=case["sigma_min"], rho=case["rho"])
    sigmas = sampler.schedule(case["steps"])
    yield "sigmas", sigmas.float()
    yield "c_noise", edm_scaling(sigmas[:-1], sigma_data=case["sigma_data"]).c_noise.float()
    if any(map(options.wants, ("net", "net_uncond", "embedded", "rope", "sample"))):
        yield from _of_network(case, tensors, sampler, options)


def _windows(case: Case, tensors: Tensors) -> Outputs:
    window, overlap = case["window_latent_frames"], case["overlap_latent_frames"]
    for name in tensors:
        if match := _SPLIT.fullmatch(name):
            yield match[1], torch.tensor(split_windows(int(match[2]), window=window, overlap=overlap))
    pieces_TCHW = [piece_CTHW.transpose(0, 1) for piece_CTHW in tensors["inputs.blend"]]
    yield "blend", blend(pieces_TCHW, case["blend_overlap_frames"]).transpose(0, 1)[None]


def _of_network(case: Case, tensors: Tensors, sampler: Sampler, options: Options) -> Outputs:
    network = network_for(
        {},
        weights=options.weights or inside(tensors, options),
        options=options,
        shape=_shape(case, tensors),
    )
    assert isinstance(network, TokenDiT)
    inputs = {
        name.removeprefix("inputs."): tensor.to(options.device)
        for name, tensor in tensors.items()
        if name.startswith("inputs.")
    }
    told = Told(inputs["context"], inputs["tokens"][:, 0], inputs["padding_mask"], float(inputs["fps"][0]))
    x_BCTHW, c_noise_B = inputs["x"], inputs["timestep"]
    _, _, T, H, W = x_BCTHW.shape
    grid_THW = network.positions((T, H, W), fps=told.fps).grid_THW
    yield "rope", network.angles(grid_THW, fps=told.fps).flatten(1)
    embedded = network.embed_patches(
        x_BCTHW.to(network.dtype),
        padding_mask_B1HW=told.padding_mask_B1HW,
        told_BCTHW=network.embed_ids(told.ids_BTHW, (H, W)),
    )
    yield "embedded", by_place(embedded, grid_THW)
    yield "net", _call(network, x_BCTHW, c_noise_B, told)
    yield "net_uncond", _call(network, x_BCTHW, c_noise_B, told.nothing())
    if options.wants("sample"):
        yield "sample", _sample(case, network, inputs["noise"], told, sampler)


def _call(network: TokenDiT, x_BCTHW: Tensor, c_noise_B: Tensor, told: Told) -> Tensor:
    _, _, T, H, W = x_BCTHW.shape
    output: Tensor = network(
        x_BCTHW,
        modulation=network.modulate(c_noise_B),
        text=network.encode_text(told.text_BLD),
        positions=network.positions((T, H, W), fps=told.fps),
        padding_mask_B1HW=told.padding_mask_B1HW,
        told_BCTHW=network.embed_ids(told.ids_BTHW, (H, W)),
    )
    return output


def _sample(case: Case, network: TokenDiT, noise: Tensor, told: Told, sampler: Sampler) -> Tensor:
    def predict(x_BCTHW: Tensor, c_noise: Tensor) -> Tensor:
        c_noise_B = c_noise.expand(len(x_BCTHW))
        cond, uncond = (_call(network, x_BCTHW, c_noise_B, each) for each in (told, told.nothing()))
        return guided(cond, uncond, case["guidance"])

    return sampler.sample(EdmDenoiser(predict, case["sigma_data"]), noise, num_steps=case["steps"])


def _shape(case: Case, tensors: Tensors) -> DiTShape:
    patch = {"patch_spatial": case["patch_spatial"]}
    ratios = {f"rope_{axis}_extrapolation_ratio": case["rope_ratios"][axis] for axis in "thw"}
    return replace(
        shape_of(case["net"] | patch | ratios),
        family=Family.TOKEN_DECODER,
        takes_given_mask=False,
        token_vocab=case["token_vocab"],
        token_dim=case["token_dim"],
        text_length=tensors["inputs.context"].shape[1],
        base_fps=float(case["base_fps"]),
    )
