"""One network call: this package's back ends beside diffusers' CosmosTransformer3DModel, same weights.

python benchmarks/dit_forward.py --model Cosmos-1.0-Diffusion-7B-Text2World --latent 16 88 160

Random weights, bfloat16, batch 1. Seconds are the median of --repeats calls between CUDA events after two
unmeasured ones, the contestants in turn; the text's keys and values are made once, as in a video. diffusers
is given cuDNN attention too: left alone it takes flash, which is slower. The last column is the relative L2
difference of the outputs to the first contestant's. Under torchrun all ranks share the call's tokens (context
parallel); te-ring is Transformer Engine's own ring in place of our exchange of tokens and heads.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_nemo.catalog import CARDS, DiTShape, find_card
from cosmos_nemo.checkpoint.formats import DIFFUSERS
from cosmos_nemo.checkpoint.names import parameter_shapes, rules_for
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import Backend, TEAttention, te_backend, torch_backend
from cosmos_nemo.parallel.environment import ranks_from
from cosmos_nemo.parallel.groups import Groups, open_store, start, stop
from cosmos_nemo.plan import Plan
from cosmos_nemo.tools.standin_network import random_parameter

GIB = 2**30
FPS = 24
Call = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=next(iter(CARDS)))
    parser.add_argument("--latent", type=int, nargs=3, default=[16, 88, 160], metavar=("T", "H", "W"))
    everyone = ["torch", "te", "te-ring", "diffusers"]
    parser.add_argument("--contestants", nargs="+", default=["torch", "te", "diffusers"], choices=everyone)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the first contestant's time goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    ranks = ranks_from(os.environ)
    device = torch.device("cuda", ranks.local_rank)
    groups = start(ranks, plan=Plan(cp=ranks.num_ranks), store=open_store(ranks), device=device)
    with torch.inference_mode():
        report(args, groups)
    stop()


def report(args: argparse.Namespace, groups: Groups) -> None:
    shape = find_card(args.model).network
    inputs = make_inputs(shape, args.latent)
    weights = random_weights(shape)
    calls: dict[str, Call] = {}
    for name in args.contestants:
        if name == "diffusers":
            calls[name] = diffusers_call(shape, weights, inputs)
        else:
            calls[name] = our_call(shape, backend_of(name), groups, weights, inputs)
    rows = measure(calls, repeats=args.repeats)
    if groups.rank != 0:
        return
    print(f"{groups.plan.num_ranks} rank(s), context parallel")
    print(f"{args.model}, latent {args.latent}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'':<10}{'seconds':>9}{'min':>9}{'max':>9}{'peak GiB':>10}{'rel. L2':>10}")
    for row in rows:
        print(
            f"{row['name']:<10}{row['seconds']:>9.3f}{row['min']:>9.3f}{row['max']:>9.3f}"
            f"{row['peak_gib']:>10.1f}{row['relative_l2']:>10.1e}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.profile:
        profile(next(iter(calls.values())))


def make_inputs(shape: DiTShape, latent_THW: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1, shape.latent_channels, *latent_THW, generator=generator, device="cuda")
    text = torch.randn(1, shape.text_length, shape.text_dim, generator=generator, device="cuda")
    return {"x": x.bfloat16(), "text": text.bfloat16(), "c_noise": torch.tensor([0.3], device="cuda")}


def random_weights(shape: DiTShape) -> dict[str, Tensor]:
    """Our names, on the GPU, shared by all contestants where their layout allows."""
    generator = torch.Generator("cuda").manual_seed(1)
    return {
        name: random_parameter(name, size, generator).bfloat16()
        for name, size in parameter_shapes(shape).items()
    }


def backend_of(name: str) -> Backend:
    if name == "torch":
        return torch_backend()
    if name == "te":
        return te_backend()
    return replace(te_backend(), attention=ModuleSpec(module=TEAttention, params={"prefer_ring": True}))


def our_call(
    shape: DiTShape, backend: Backend, groups: Groups, weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> Call:
    network = build_network(
        shape,
        backend=backend,
        pg_collection=groups.collection,
        device=torch.device("meta"),
        dtype=torch.bfloat16,
    )
    network.to_empty(device="cuda")
    for name, parameter in network.named_parameters():
        parameter.data = weights[name]
    text = network.encode_text(inputs["text"])
    T, H, W = inputs["x"].shape[2:]
    positions = network.positions((T, H, W), fps=FPS)

    def call() -> Tensor:
        modulation = network.modulate(inputs["c_noise"])
        return network(inputs["x"], modulation=modulation, text=text, positions=positions)

    return call


def diffusers_call(shape: DiTShape, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Call:
    from diffusers import CosmosTransformer3DModel

    with torch.device("meta"):
        model = CosmosTransformer3DModel(
            in_channels=shape.latent_channels + shape.takes_given_mask,
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
            concat_padding_mask=True,
            extra_pos_embed_type="learnable",
        )
    state = {}
    for name, rule in rules_for(shape, DIFFUSERS, prefix="").items():
        state.update(zip(rule.names, rule.split(weights[name]), strict=True))
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    _, _, _, H, W = inputs["x"].shape
    padding_mask_B1HW = torch.zeros(1, 1, H * 8, W * 8, device="cuda", dtype=torch.bfloat16)

    def call() -> Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            return model(
                hidden_states=inputs["x"],
                timestep=inputs["c_noise"].bfloat16(),
                encoder_hidden_states=inputs["text"],
                fps=FPS,
                padding_mask=padding_mask_B1HW,
                return_dict=False,
            )[0]

    return call


def measure(calls: dict[str, Call], *, repeats: int) -> list[dict[str, Any]]:
    outputs, peaks = {}, {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        outputs[name] = call().float().cpu()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    for _ in range(repeats):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / 1000)
    first = next(iter(outputs.values()))
    return [
        {
            "name": name,
            "seconds": statistics.median(times[name]),
            "min": min(times[name]),
            "max": max(times[name]),
            "peak_gib": peaks[name] / GIB,
            "relative_l2": float((outputs[name] - first).norm() / first.norm()),
        }
        for name in calls
    ]


def profile(call: Call) -> None:
    """Peak GiB in the table is what a call needs beside the weights; this is its time by kernel."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70))


if __name__ == "__main__":
    main()
