"""Tokens a second of an autoregressive transformer, beside what the GPU's memory allows.

python benchmarks/token_decode.py --model Cosmos-Predict1-4B
python benchmarks/token_decode.py --model Cosmos-Predict1-12B --batch_sizes 1 8 --ends 1024

Random weights at full size, bfloat16 unless --dtype says otherwise. "prefill" is the prompt of nine frames
read at once, the median of three. Then --tokens tokens are drawn after it as a video's are (top-p 0.8,
sampling/token_loop.py), on a GPU by CUDA graphs, one for every 1,024 positions; "tokens/s" counts those of
all videos of the batch from the end of the prompt to the last token, the captures included. The line that
memory allows is --bandwidth over the bytes that a step reads: all weights but the embedding, and the keys and
values of half the tokens between the prompt's and the last one's. --no_graphs launches every kernel.

A step takes longer with every 1,024 positions, by the same each time. --ends N draws the first N and the last
N tokens of a video alone, and tells the tokens a second at the mean of their seconds; take a multiple of
1,024, so that there are as many captures for each token. --profile tells the kernels of the first 64 tokens.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import CARDS, TokenShape, find_card
from cosmos_nemo.models.common.backend import Backend, te_backend, torch_backend
from cosmos_nemo.models.common.missing import te_missing
from cosmos_nemo.models.token_transformer.model import TokenTransformer, build_token_transformer
from cosmos_nemo.parallel.groups import start_alone, stop
from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.tokens import TokenSampling

GIB = 2**30
H200_BYTES_A_SECOND = 4.8e12
_BACKENDS = {"torch": torch_backend, "te": te_backend}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    shape = shape_of(args)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    rows = []
    print(
        f"{args.model}, {shape.num_layers} layers of width {shape.hidden_size}, {args.dtype}, "
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}, torch {torch.__version__}"
    )
    print(f"{'':<8}{'batch':>6}{'prefill s':>11}{'tokens/s':>10}{'memory allows':>15}{'share':>7}{'GiB':>7}")
    groups = start_alone(device)
    for name in args.backends:
        if name == "te" and (reason := te_missing()) is not None:
            print(f"te is left out: {reason}")
            continue
        network = filled(shape, _BACKENDS[name](), groups.collection, device, getattr(torch, args.dtype))
        for batch_size in args.batch_sizes:
            rows.append({"backend": name, **measured(network, batch_size, args)})
            show(rows[-1])
        del network
    stop()
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "rows": rows}, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name, card in CARDS.items() if card.tokens is not None]
    parser.add_argument("--model", default=names[0], choices=names)
    parser.add_argument("--backends", nargs="+", default=list(_BACKENDS), choices=_BACKENDS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, help="drawn after the prompt; all that a video has")
    parser.add_argument("--ends", type=int, metavar="N", help="draw the first N and the last N of them alone")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--layers", type=int, help="instead of the model's own number, to try it out")
    parser.add_argument("--width", type=int, help="likewise of the hidden state and the MLP")
    parser.add_argument("--latent", type=int, nargs=3, metavar=("T", "H", "W"), help="likewise of a video")
    parser.add_argument("--no_graphs", action="store_true", help="launch every kernel of every step")
    parser.add_argument(
        "--bandwidth", type=float, default=H200_BYTES_A_SECOND, help="bytes a second; an H200's, 4.8e12"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", type=Path, help="write the table here too")
    return parser.parse_args(argv)


def shape_of(args: argparse.Namespace) -> TokenShape:
    tokens = find_card(args.model).tokens
    assert tokens is not None
    shape = tokens.network
    if args.layers:
        shape = replace(shape, num_layers=args.layers)
    if args.width:
        shape = replace(shape, hidden_size=args.width, ffn_hidden_size=2 * args.width)
    return replace(shape, latent_THW=tuple(args.latent)) if args.latent else shape


@torch.no_grad()
def filled(
    shape: TokenShape, backend: Backend, collection: Any, device: torch.device, dtype: torch.dtype
) -> TokenTransformer:
    network = build_token_transformer(
        shape, backend=backend, pg_collection=collection, device=device, dtype=dtype
    )
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return network


def measured(network: TokenTransformer, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    shape, device = network.shape, network.device
    prompt = prompt_length(shape)
    count = min(args.tokens or shape.num_video_tokens, shape.num_video_tokens - prompt)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator = torch.Generator(device).manual_seed(batch_size)
    size = (batch_size, shape.num_video_tokens)
    tokens_BS = torch.randint(shape.vocab_size, size, device=device, generator=generator)
    spans = [(prompt, count)]
    if args.ends and 2 * args.ends < count:
        spans = [(prompt, args.ends), (prompt + count - args.ends, args.ends)]
    options: dict[str, Any] = {
        "sampling": TokenSampling(),
        "seeds": list(range(batch_size)),
        "use_graphs": False if args.no_graphs else None,
    }
    generate(network, tokens_BS[:, :prompt], num_tokens=min(count, 4), **options)
    costs = [span_seconds(network, tokens_BS[:, :begin], number, options) for begin, number in spans]
    step = statistics.mean(
        seconds / (number - 1) for (_, seconds), (_, number) in zip(costs, spans, strict=True)
    )
    allowed = batch_size * args.bandwidth / bytes_of_a_step(network, batch_size, prompt, count)
    speed = batch_size / step
    row = {
        "batch_size": batch_size,
        "prefill_seconds": costs[0][0],
        "tokens_per_second": speed,
        "memory_allows": allowed,
        "share": speed / allowed,
        "num_tokens": sum(number for _, number in spans),
        "spans": [
            {"begin": begin, "num_tokens": number, "prefill_seconds": prefill, "seconds": seconds}
            for (begin, number), (prefill, seconds) in zip(spans, costs, strict=True)
        ],
        "peak_gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None,
    }
    if args.profile:
        show_kernels(network, tokens_BS[:, :prompt], min(count, 64), options)
    return row


def span_seconds(
    network: TokenTransformer, tokens_BS: torch.Tensor, count: int, options: dict[str, Any]
) -> tuple[float, float]:
    """Of the prompt, and from its end to the last of the tokens that are drawn after it."""
    prefill = prefill_seconds(network, tokens_BS)
    started = time.perf_counter()
    generate(network, tokens_BS, num_tokens=count, **options)
    return prefill, time.perf_counter() - started - prefill


def show_kernels(
    network: TokenTransformer, tokens_BS: torch.Tensor, count: int, options: dict[str, Any]
) -> None:
    """Those of the prompt are among them."""
    on_gpu = network.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        generate(network, tokens_BS, num_tokens=count, **options)
        synchronize(network.device)
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70))


def prompt_length(shape: TokenShape) -> int:
    """Tokens of nine frames."""
    _, rows, columns = shape.latent_THW
    return 2 * rows * columns


@torch.inference_mode()
def prefill_seconds(network: TokenTransformer, tokens_BS: torch.Tensor) -> float:
    cache, times = network.new_cache(len(tokens_BS)), []
    for _ in range(4):
        synchronize(network.device)
        started = time.perf_counter()
        network.prefill(tokens_BS, cache)
        synchronize(network.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def bytes_of_a_step(network: TokenTransformer, batch_size: int, prompt: int, count: int) -> float:
    """That a step in the middle must read: what lies in memory, not what could be kept on the chip."""
    shape = network.shape
    size = network.dtype.itemsize
    weights = sum(each.numel() for name, each in network.named_parameters() if "word_embeddings" not in name)
    keys_and_values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * (prompt + count / 2)
    return size * (weights + batch_size * keys_and_values)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(row: dict[str, Any]) -> None:
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    print(
        f"{row['backend']:<8}{row['batch_size']:>6}{row['prefill_seconds']:>11.3f}"
        f"{row['tokens_per_second']:>10.1f}{row['memory_allows']:>15.1f}{row['share']:>7.2f}{peak:>7}",
        flush=True,
    )


if __name__ == "__main__":
    main()
