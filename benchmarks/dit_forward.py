r"""One network call: this package's back ends beside diffusers' CosmosTransformer3DModel, same weights.

python benchmarks/dit_forward.py --model Cosmos-1.0-Diffusion-7B-Text2World
python benchmarks/dit_forward.py --model Cosmos-Predict2-2B-Video2World --height 432 --width 768 \
    --num_frames 81

Random weights, batch 1, bfloat16 unless --dtype says otherwise; the model's own size of video if none is
asked for. Seconds are the median of --repeats calls after two unmeasured ones, the contestants in turn; the
text's keys and values are made once, as in a video. A network that takes given frames is given the first one;
Predict2's is told so by that frame's own noise level too. diffusers is given cuDNN attention: left alone it
takes flash, which is slower. The peak is that of the contestant alone: its weights, and what a call needs
beside them. "rel. L2" is the relative difference of the outputs to the first contestant's, and with
--reference also to one call in float32 of the torch back end, with the same rounded weights. Under torchrun
all ranks share the call's tokens (context parallel); te-ring is Transformer Engine's own ring in place of our
exchange of tokens and heads; fp8 is --precision fp8. torch-cudnn and fp8-cudnn go without FlashAttention 3,
which torch and fp8 take where it is installed. te and fp8-cudnn are left out where Transformer Engine cannot
run.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_nemo.catalog import CARDS, DiTShape, Family, ModelCard, find_card
from cosmos_nemo.checkpoint.formats import DIFFUSERS
from cosmos_nemo.checkpoint.names import parameter_shapes, rules_for
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.attention import TorchAttention, attend_by_torch
from cosmos_nemo.models.common.backend import (
    Backend,
    TEAttention,
    fp8_backend,
    te_backend,
    torch_backend,
)
from cosmos_nemo.models.common.fp8 import KERNELS, FP8Attention
from cosmos_nemo.models.common.fp8_cudnn import cudnn_missing
from cosmos_nemo.models.common.missing import te_missing
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, open_store, start, stop
from cosmos_nemo.plan import Plan
from cosmos_nemo.tools.standin_network import random_parameter

GIB = 2**30
FPS = 24
NOISE_LEVEL = 0.3
GIVEN_LEVEL = 1e-4 / (1 + 1e-4)
"""What Predict2's network is told of a frame that it sees without noise."""
MISSING = {"te": te_missing, "te-ring": te_missing, "fp8-cudnn": cudnn_missing}
"""Why a contestant cannot run here, or None when it can."""
EVERYONE = ("torch", "torch-cudnn", "te", "te-ring", "fp8", "fp8-cudnn", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    call: Callable[[], Tensor]
    weights_bytes: int


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    ranks = ranks_from(os.environ)
    device = torch.device("cuda", ranks.local_rank) if args.device == "cuda" else torch.device(args.device)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=device)
    with torch.inference_mode():
        report(args, groups, device)
    stop()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=next(iter(CARDS)))
    parser.add_argument("--height", type=int, help="pixels of the video; the model's")
    parser.add_argument("--width", type=int, help="likewise")
    parser.add_argument("--num_frames", type=int, help="of the video; the model's")
    parser.add_argument("--latent", type=int, nargs=3, metavar=("T", "H", "W"), help="instead of these three")
    parser.add_argument("--contestants", nargs="+", default=["torch", "te", "diffusers"], choices=EVERYONE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--reference", action="store_true", help="compare with one call in float32 too")
    parser.add_argument("--profile", action="store_true", help="print where the time of each goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    if args.latent and (args.height or args.width or args.num_frames):
        parser.error("--latent stands instead of --height, --width and --num_frames")
    return args


def latent_size(card: ModelCard, args: argparse.Namespace) -> list[int]:
    """Latent frames, rows and columns."""
    if args.latent:
        return list(args.latent)
    side, video = card.tokenizer.spatial_compression, card.video
    rows, columns = (args.height or video.height) // side, (args.width or video.width) // side
    return [card.latent_frames(args.num_frames or video.num_frames), rows, columns]


def report(args: argparse.Namespace, groups: Groups, device: torch.device) -> None:
    card = find_card(args.model)
    shape, latent_THW = card.network, latent_size(card, args)
    dtype = getattr(torch, args.dtype)
    inputs = make_inputs(shape, latent_THW, device=device, dtype=dtype)
    weights = random_weights(shape, device=device, dtype=dtype)
    reference = float32_output(shape, groups, weights, inputs) if args.reference else None
    contestants: dict[str, Contestant] = {}
    for name in args.contestants:
        if name == "diffusers":
            contestants[name] = diffusers_contestant(shape, weights, inputs)
        elif (reason := MISSING.get(name, lambda: None)()) is not None:
            print(f"{name} is left out: {reason}")
        else:
            contestants[name] = our_contestant(shape, backend_of(name), groups, weights.__getitem__, inputs)
    rows = measure(contestants, repeats=args.repeats, device=device, reference=reference)
    if groups.rank != 0:
        return
    facts = {
        "model": card.name,
        "latent": latent_THW,
        "tokens": latent_THW[0] * (latent_THW[1] // shape.patch_size) * (latent_THW[2] // shape.patch_size),
        "ranks": groups.plan.num_ranks,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "rows": rows,
    }
    show(facts)
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1))
    if args.profile:
        for name, contestant in contestants.items():
            print(name)
            profile(contestant.call)


def show(facts: dict[str, Any]) -> None:
    print(f"{facts['ranks']} rank(s), context parallel")
    print(
        f"{facts['model']}, latent {facts['latent']}, {facts['tokens']:,} tokens, {facts['dtype']}, "
        f"{facts['device']}, torch {facts['torch']}"
    )
    print(
        f"{'':<12}{'seconds':>9}{'min':>9}{'max':>9}{'beside GiB':>12}{'peak GiB':>10}"
        f"{'rel. L2':>10}{'to float32':>12}"
    )
    for row in facts["rows"]:
        print(
            f"{row['name']:<12}{row['seconds']:>9.3f}{row['min']:>9.3f}{row['max']:>9.3f}"
            f"{row['beside_gib']:>12.1f}{row['peak_gib']:>10.1f}{row['relative_l2']:>10.1e}"
            + (f"{row['to_float32']:>12.1e}" if "to_float32" in row else "")
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of one call; all on one device. The mask is None for a network that takes no given frames."""

    x_BCTHW: Tensor
    text_BLD: Tensor
    levels: Tensor
    """c_noise: [B], or of Predict2 [B, T]."""
    given_mask_B1THW: Tensor | None


def make_inputs(
    shape: DiTShape, latent_THW: list[int], *, device: torch.device, dtype: torch.dtype
) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(1, shape.latent_channels, *latent_THW, generator=generator, device=device)
    text = torch.randn(1, shape.text_length, shape.text_dim, generator=generator, device=device)
    mask = None
    if shape.takes_given_mask:
        mask = torch.zeros(1, 1, *latent_THW, device=device, dtype=dtype)
        mask[:, :, 0] = 1
    levels = torch.tensor([NOISE_LEVEL], device=device)
    if shape.family is Family.PREDICT2:
        levels = levels.expand(1, latent_THW[0]).clone()
        if mask is not None:
            levels[:, 0] = GIVEN_LEVEL
    return Inputs(x_BCTHW=x.to(dtype), text_BLD=text.to(dtype), levels=levels, given_mask_B1THW=mask)


def random_weights(shape: DiTShape, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Our names, on the device, shared by all contestants where their layout allows."""
    generator = torch.Generator(device).manual_seed(1)
    return {
        name: random_parameter(name, size, generator).to(dtype)
        for name, size in parameter_shapes(shape).items()
    }


def backend_of(name: str) -> Backend:
    """KeyError for another name."""
    if name == "torch-cudnn":
        return replace(torch_backend(), attention=WithoutFlash)
    if name == "fp8-cudnn":
        backend = fp8_backend()
        kernels = ModuleSpec(module=FP8Attention, params={"kernels": KERNELS[1:]})
        assert backend.fp8 is not None
        return replace(backend, fp8=replace(backend.fp8, self_attention=kernels), attention=WithoutFlash)
    if name == "te-ring":
        return replace(te_backend(), attention=ModuleSpec(module=TEAttention, params={"prefer_ring": True}))
    return {"torch": torch_backend, "te": te_backend, "fp8": fp8_backend}[name]()


class WithoutFlash(TorchAttention):
    """Without FlashAttention 3."""

    def attend(self, q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
        return attend_by_torch(q_SBNK, k_LBNK, v_LBNK)


def our_contestant(
    shape: DiTShape, backend: Backend, groups: Groups, weight_of: Callable[[str], Tensor], inputs: Inputs
) -> Contestant:
    x_BCTHW = inputs.x_BCTHW
    network = build_network(
        shape,
        backend=backend,
        pg_collection=groups.collection,
        device=torch.device("meta"),
        dtype=x_BCTHW.dtype,
    )
    network.to_empty(device=x_BCTHW.device)
    for name, parameter in network.named_parameters():
        parameter.data = weight_of(name)
    text = network.encode_text(inputs.text_BLD)
    T, H, W = x_BCTHW.shape[2:]
    positions = network.positions((T, H, W), fps=FPS)

    def call() -> Tensor:
        modulation = network.modulate(inputs.levels)
        return network(
            x_BCTHW,
            modulation=modulation,
            text=text,
            positions=positions,
            given_mask_B1THW=inputs.given_mask_B1THW,
        )

    return Contestant(call=call, weights_bytes=bytes_of(network))


def diffusers_contestant(shape: DiTShape, weights: dict[str, Tensor], inputs: Inputs) -> Contestant:
    """The padding mask goes in as a second channel of the condition mask: its resize wants torchvision."""
    from diffusers import CosmosTransformer3DModel

    is_predict2 = shape.family is Family.PREDICT2
    with torch.device("meta"):
        model = CosmosTransformer3DModel(
            in_channels=shape.patch_dim // shape.patch_size**2,
            out_channels=shape.latent_channels,
            num_attention_heads=shape.num_heads,
            attention_head_dim=shape.head_dim,
            num_layers=shape.num_layers,
            mlp_ratio=shape.ffn_hidden_size / shape.hidden_size,
            text_embed_dim=shape.text_dim,
            adaln_lora_dim=shape.adaln_lora_dim,
            max_size=(shape.max_latent_frames, shape.max_latent_height, shape.max_latent_width),
            patch_size=(1, shape.patch_size, shape.patch_size),
            rope_scale=shape.rope_ratios_THW,
            concat_padding_mask=False,
            extra_pos_embed_type=None if is_predict2 else "learnable",
        )
    state: dict[str, Tensor] = {}
    for name, rule in rules_for(shape, DIFFUSERS, prefix="").items():
        state.update(zip(rule.names, rule.split(weights[name]), strict=True))
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    model.eval()
    x_BCTHW, given_B1THW = inputs.x_BCTHW, inputs.given_mask_B1THW
    padding_B1THW = torch.zeros_like(x_BCTHW[:, :1])
    masks_BCTHW = torch.cat([padding_B1THW] if given_B1THW is None else [given_B1THW, padding_B1THW], dim=1)

    def call() -> Tensor:
        kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(kernels, set_priority=True):
            return model(
                hidden_states=x_BCTHW,
                timestep=inputs.levels[:, None, :, None, None] if is_predict2 else inputs.levels,
                encoder_hidden_states=inputs.text_BLD,
                fps=None if is_predict2 else FPS,
                condition_mask=masks_BCTHW,
                return_dict=False,
            )[0]

    return Contestant(call=call, weights_bytes=bytes_of(model))


def float32_output(shape: DiTShape, groups: Groups, weights: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """On the CPU, of the torch back end.

    Weights are widened one at a time: twice those of the 14B in float32 would not fit beside the others.
    """
    floats = replace(inputs, x_BCTHW=inputs.x_BCTHW.float(), text_BLD=inputs.text_BLD.float())
    contestant = our_contestant(shape, torch_backend(), groups, lambda name: weights[name].float(), floats)
    return contestant.call().cpu()


def bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def measure(
    contestants: dict[str, Contestant],
    *,
    repeats: int,
    device: torch.device,
    reference: Tensor | None = None,
) -> list[dict[str, Any]]:
    outputs, beside = {}, {}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name, contestant in contestants.items():
        timed(contestant.call, device)
        before = start_counting(device)
        outputs[name] = contestant.call().float().cpu()
        beside[name] = peak_bytes(device) - before
    for _ in range(repeats):
        for name, contestant in contestants.items():
            times[name].append(timed(contestant.call, device))
    first = next(iter(outputs.values()))
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "seconds": statistics.median(times[name]),
            "min": min(times[name]),
            "max": max(times[name]),
            "beside_gib": beside[name] / GIB,
            "peak_gib": (beside[name] + contestant.weights_bytes) / GIB,
            "relative_l2": relative_l2(outputs[name], first),
        }
        for name, contestant in contestants.items()
    ]
    if reference is not None:
        for row in rows:
            row["to_float32"] = relative_l2(outputs[row["name"]], reference)
    return rows


def relative_l2(output: Tensor, right: Tensor) -> float:
    return float((output - right).norm() / right.norm())


def timed(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds until the device has finished."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_counting(device: torch.device) -> int:
    """Bytes of all tensors now; 0 on the CPU, where nobody counts them."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def profile(call: Callable[[], Tensor]) -> None:
    """A call's time by kernel."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70))


if __name__ == "__main__":
    main()
