"""A safetensors file of random weights in a checkpoint's own names, made on a device and written by threads.

For files of tens of gigabytes: each thread makes a tensor on the device, and writes it to its place in the
file through one buffer of its own, which is pinned where the device is a GPU. No tensor is whole on the host.
"""

import json
import os
import queue
import struct
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.rules import Rule

Make = Callable[[str, tuple[int, ...], torch.Generator], Tensor]
"""Our name of a parameter, its shape, a generator -> its values on the generator's device."""

_BUFFER_BYTES = 2**26
_NUM_THREADS = 8


def write_random_safetensors(
    path: Path,
    rules: Mapping[str, Rule],
    make: Make,
    *,
    device: torch.device,
    buffer_bytes: int = _BUFFER_BYTES,
    num_threads: int = _NUM_THREADS,
) -> None:
    """Writes the tensors of `rules` in bfloat16; each comes from a seed of its own name."""
    header, places = _layout(rules)
    buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
    for _ in range(num_threads):
        buffers.put(torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda"))

    def write(name: str) -> None:
        rule = rules[name]
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        parts = rule.split(make(name, rule.shape, generator).to(torch.bfloat16))
        buffer = buffers.get()
        try:
            for stored, part in zip(rule.names, parts, strict=True):
                _write_at(file.fileno(), places[stored], part, buffer)
        finally:
            buffers.put(buffer)

    with path.open("wb") as file, ThreadPoolExecutor(num_threads) as pool:
        file.write(header)
        file.flush()
        largest_first = sorted(rules, key=lambda name: -torch.Size(rules[name].shape).numel())
        for _ in pool.map(write, largest_first):
            pass


def _layout(rules: Mapping[str, Rule]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for rule in rules.values():
        for stored, shape in zip(rule.names, rule.stored_shapes(), strict=True):
            begin, end = end, end + torch.Size(shape).numel() * torch.bfloat16.itemsize
            entries[stored] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    places = {
        name: len(header) + entry["data_offsets"][0] for name, entry in entries.items() if "shape" in entry
    }
    return header, places


def _write_at(descriptor: int, place: int, tensor: Tensor, buffer: Tensor) -> None:
    for piece in tensor.contiguous().view(-1).view(torch.uint8).split(len(buffer)):
        host = buffer[: len(piece)]
        host.copy_(piece)
        written = 0
        while written < len(host):
            written += os.pwrite(descriptor, host[written:].numpy().data, place + written)
        place += written
