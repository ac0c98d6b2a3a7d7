"""Whole samples, from noise to latent, through the diffusion transformer with guidance."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cosmos_nemo.sampling.denoiser import Branch, Denoise, EdmDenoiser, branches_needed, guided
from cosmos_nemo.sampling.given import FixedCorruption, GivenDenoiser, GivenFrames
from cosmos_nemo.sampling.samplers import Sampler, euler_sampler, res_sampler
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors
from cosmos_nemo.tools.checks.predict1_dit import network_for
from cosmos_nemo.tools.checks.reference import read_case

_SIGMA_DATA = 0.5


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """euler_sigmas; per case: final, and its states, of which there are three kinds."""
    samplers = {name: _sampler(one) for name, one in case["cases"].items()}
    for name, one in case["cases"].items():
        if one["sampler"] == "euler" and "outputs.euler_sigmas" in tensors:
            yield "euler_sigmas", samplers[name].schedule(case["steps"]).float()
            break
    for name, one in case["cases"].items():
        outputs = [key.removeprefix("outputs.") for key in tensors if key.startswith(f"outputs.{name}.")]
        if not any(map(options.wants, outputs)):
            continue
        is_res = one["sampler"] == "res"
        noise = tensors["inputs.res_noise" if is_res else f"inputs.{name}_noise"].to(options.device)
        denoise = _Recorded(_denoiser(case, one, noise.shape, tensors, options))
        yield f"{name}.final", samplers[name].sample(denoise, noise, num_steps=case["steps"])
        if is_res:
            yield f"{name}.denoiser_inputs", torch.cat(denoise.inputs)
        elif "condition" in one:
            yield f"{name}.net_states", torch.cat(denoise.shown)
        else:
            yield f"{name}.states", torch.cat(denoise.inputs)


@dataclass
class _Recorded:
    """A denoiser that remembers the states it was called with."""

    denoise: Denoise
    inputs: list[Tensor] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)
    """The same with the given frames put in."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append(x)
        return self.denoise(x, sigma)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.shown.append(self.denoise.given(x, sigma))
        return self.shown[-1]


def _sampler(one: Case) -> Sampler:
    levels = {name: one[name] for name in ("sigma_max", "sigma_min", "rho")}
    return res_sampler(one["solver"], **levels) if one["sampler"] == "res" else euler_sampler(**levels)


def _denoiser(case: Case, one: Case, latent_shape: torch.Size, tensors: Tensors, options: Options) -> Denoise:
    weights = options.folder / case["weights_from"][one["weights"]]
    network = network_for(read_case(weights)["config"], weights=options.weights or weights, options=options)
    _, _, T, H, W = latent_shape
    positions = network.positions((T, H, W), fps=float(tensors["inputs.fps"][0]))
    padding_mask_B1HW = tensors["inputs.padding_mask"].to(options.device)
    frames = _given_frames(case, one, tensors, options) if "condition" in one else None
    branches = [
        (network.encode_text(_text_BLD(branch, one, tensors).to(options.device)), _mask(frames, one, branch))
        for branch in branches_needed(one["guidance"])
    ]

    def predict(x_BCTHW: Tensor, c_noise: Tensor) -> Tensor:
        modulation = network.modulate(c_noise.expand(len(x_BCTHW)))
        outputs = [
            network(
                x_BCTHW,
                modulation=modulation,
                text=text,
                positions=positions,
                padding_mask_B1HW=padding_mask_B1HW,
                given_mask_B1THW=mask_B1THW,
            )
            for text, mask_B1THW in branches
        ]
        if len(outputs) == 1:
            return outputs[0]
        cond, uncond = outputs
        return guided(cond, uncond, one["guidance"])

    denoiser = EdmDenoiser(predict, _SIGMA_DATA)
    return denoiser if frames is None else GivenDenoiser(denoiser, frames, _SIGMA_DATA)


def _given_frames(case: Case, one: Case, tensors: Tensors, options: Options) -> GivenFrames:
    latent_BCTHW = tensors[one["condition"]].to(options.device)
    is_given_T = torch.zeros(latent_BCTHW.shape[2], dtype=torch.bool, device=options.device)
    is_given_T[: case["num_condition_latents"]] = True
    if one["location"] == "first_and_last_1":
        is_given_T[-1] = True
    elif one["location"] != "first_n":
        raise ValueError(f"location {one['location']!r} is neither 'first_n' nor 'first_and_last_1'.")
    noise = tensors["inputs.augment_noise"].to(options.device)
    corruption = FixedCorruption(noise, case["condition_augment_sigma"])
    return GivenFrames(latent_BCTHW, is_given_T, corruption)


def _mask(frames: GivenFrames | None, one: Case, branch: Branch) -> Tensor | None:
    if frames is None:
        return None
    hidden = branch == "uncond" and one.get("input_frames_guidance", False)
    return torch.zeros_like(frames.mask_B1THW) if hidden else frames.mask_B1THW


def _text_BLD(branch: Branch, one: Case, tensors: Tensors) -> Tensor:
    if branch == "cond":
        return tensors["inputs.t5_text_embeddings"]
    if one["uncond"] == "negative prompt":
        return tensors["inputs.neg_t5_text_embeddings"]
    if one["uncond"] == "zero text":
        return torch.zeros_like(tensors["inputs.t5_text_embeddings"])
    raise ValueError(f"uncond {one['uncond']!r} is neither 'negative prompt' nor 'zero text'.")
