"""The Predict2 network: what one call passes through, its denoiser, and whole samples with guidance."""

from dataclasses import replace

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family
from cosmos_nemo.models.common.dit.layers import KeyValue
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.sampling.denoiser import Denoise, guided
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser, flow_scaling
from cosmos_nemo.sampling.samplers import res_sampler
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors
from cosmos_nemo.tools.checks.predict1_dit import by_place, inside, network_for, shape_of

_PREFIX, _GUIDED = "inputs.", "outputs.denoise.cfg_x0_"
_TAKES_MASK = "MinimalV1LVGDiT"
"""The upstream class that adds a channel for the mask to its in_channels."""


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Every group of outputs that the file has inputs for."""
    shape = replace(
        shape_of(case["net"]), family=Family.PREDICT2, takes_given_mask=case["network"] == _TAKES_MASK
    )
    weights = options.weights or inside(tensors, options)
    network = network_for(case["net"], weights=weights, options=options, shape=shape)
    inputs = {
        name.removeprefix(_PREFIX): tensor.to(options.device)
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX)
    }
    yield from _forward(network, _group(inputs, "forward"))
    if "image.x" in inputs:
        yield "image.y", _image(network, inputs)
    if "denoise.sigmas" in inputs:
        yield from _scaling(inputs["denoise.sigmas"])
        guided_ones = {int(name.rpartition("_")[2]) for name in tensors if name.startswith(_GUIDED)}
        yield from _denoise(case, network, _group(inputs, "denoise"), guided_ones)
    yield from _sample(case, network, inputs)


def _group(inputs: Tensors, name: str) -> Tensors:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)}


def _forward(network: DiT, inputs: Tensors) -> Outputs:
    """The network's forward, spelled out, yielding after every piece."""
    latent_THW = _size(inputs["x"])
    positions = network.positions(latent_THW, fps=network.shape.base_fps)
    grid = positions.grid_THW
    timesteps_BT = _by_frame(inputs["timesteps"], latent_THW[0])
    yield "forward.rope_angles", network.angles(grid, fps=network.shape.base_fps)
    normed, lora = network.embed_timestep(timesteps_BT)
    yield "forward.t_embedding_normed", normed
    yield "forward.adaln_lora", lora
    masks = {
        "padding_mask_B1HW": inputs["padding_mask"],
        "given_mask_B1THW": inputs.get("condition_mask"),
    }
    hidden = network.embed_patches(inputs["x"].to(network.dtype), **masks)
    yield "forward.x_embedded", by_place(hidden, grid)
    modulation, text = network.modulate(timesteps_BT), network.encode_text(inputs["crossattn_emb"])
    runs = network.runs_of(modulation, positions)
    for index, (layer, arguments) in enumerate(network.layer_calls(modulation, text, positions, runs)):
        hidden = layer(hidden, **arguments)
        yield f"forward.block{index}", by_place(hidden, grid)
    yield "forward.final_layer", by_place(network.final_layer(hidden, modulation.final, runs), grid)
    # Through forward itself, so that what samples a video is checked and not only its pieces.
    yield "forward.y", network(inputs["x"], modulation=modulation, text=text, positions=positions, **masks)


def _image(network: DiT, inputs: Tensors) -> Tensor:
    x = inputs["image.x"]
    takes_mask = network.shape.takes_given_mask
    return network(
        x,
        modulation=network.modulate(_by_frame(inputs["image.timesteps"], 1)),
        text=network.encode_text(inputs["forward.crossattn_emb"][: len(x)]),
        positions=network.positions(_size(x), fps=network.shape.base_fps),
        padding_mask_B1HW=inputs["forward.padding_mask"][: len(x)],
        given_mask_B1THW=torch.zeros_like(x[:, :1]) if takes_mask else None,
    )


def _scaling(sigmas: Tensor) -> Outputs:
    scaling = flow_scaling(sigmas)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        yield f"scaling.{name}", getattr(scaling, name)


def _denoise(case: Case, network: DiT, inputs: Tensors, guided_ones: set[int]) -> Outputs:
    frames = _frames(case, inputs["gt_latent"])
    branches = [network.encode_text(inputs[name]) for name in ("text", "negative_text")]
    plain = FlowDenoiser(
        _Network(network, branches[:1], case["guidance"], frames), frames, _sigma_given(case)
    )
    both = FlowDenoiser(_Network(network, branches, case["guidance"], frames), frames, _sigma_given(case))
    for index, sigma in enumerate(inputs["sigmas"]):
        x = inputs["gt_latent"] + sigma.float() * inputs["noise"]
        clean = plain(x, sigma.cpu().float())
        yield f"denoise.x0_{index}", clean
        yield f"denoise.eps_{index}", (x - clean) / sigma.float()
        if index in guided_ones:
            yield f"denoise.cfg_x0_{index}", both(x, sigma.cpu().float())


def _sample(case: Case, network: DiT, inputs: Tensors) -> Outputs:
    noise = inputs["sample.noise"]
    frames = None
    if "denoise.gt_latent" in inputs:
        frames = _frames(case, inputs["denoise.gt_latent"])
        texts = [inputs["denoise.text"], inputs["denoise.negative_text"]]
    else:
        texts = [inputs["sample.text"], torch.zeros_like(inputs["sample.text"])]
    sampler = res_sampler(case["solver"], **{name: case[name] for name in ("sigma_max", "sigma_min", "rho")})
    yield "sample.sigmas", sampler.schedule(case["num_steps"])
    branches = [network.encode_text(text) for text in texts]
    denoise = _Recorded(
        FlowDenoiser(_Network(network, branches, case["guidance"], frames), frames, _sigma_given(case))
    )
    clean = sampler.sample(denoise, noise, num_steps=case["num_steps"])
    after = denoise.states[1:]  # what a call is shown is the state after the step before it
    yield ("sample.states", torch.stack(after)) if frames is not None else ("sample.state_last", after[-1])
    yield "sample.x0", clean
    if frames is not None:
        yield "sample.x0_float64_solver", clean


class _Recorded:
    """A denoiser that remembers the states it was called with."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.states.append(x)
        return self.denoise(x, sigma)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise.given(x, sigma)


class _Network:
    """(input, timesteps of the frames) -> F, guided if there are two branches."""

    def __init__(
        self, network: DiT, branches: list[list[KeyValue]], guidance: float, frames: CleanFrames | None
    ) -> None:
        self.network, self.branches, self.guidance, self.frames = network, branches, guidance, frames

    def __call__(self, x_BCTHW: Tensor, timesteps_T: Tensor) -> Tensor:
        network = self.network
        outputs = [
            network(
                x_BCTHW,
                modulation=network.modulate(timesteps_T[None]),
                text=text,
                positions=network.positions(_size(x_BCTHW), fps=network.shape.base_fps),
                given_mask_B1THW=None if self.frames is None else self.frames.mask_B1THW,
            )
            for text in self.branches
        ]
        return outputs[0] if len(outputs) == 1 else guided(outputs[0], outputs[1], self.guidance)


def _frames(case: Case, latent_BCTHW: Tensor) -> CleanFrames:
    is_given_T = torch.zeros(latent_BCTHW.shape[2], dtype=torch.bool, device=latent_BCTHW.device)
    is_given_T[: case["num_latent_conditional_frames"]] = True
    return CleanFrames(latent_BCTHW, is_given_T)


def _sigma_given(case: Case) -> float:
    return float(case.get("sigma_conditional", 1e-4))


def _by_frame(timesteps: Tensor, num_frames: int) -> Tensor:
    """[B] or [B, T] -> [B, T]."""
    return timesteps if timesteps.ndim == 2 else timesteps[:, None].expand(-1, num_frames)


def _size(x_BCTHW: Tensor) -> tuple[int, int, int]:
    return (x_BCTHW.shape[2], x_BCTHW.shape[3], x_BCTHW.shape[4])
