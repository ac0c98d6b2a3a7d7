"""The network cut into the pieces that NeMo's layouts store: one per layer of each stacked tensor."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.formats import NEMO
from cosmos_nemo.checkpoint.names import rules_for
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.rules import Rule, Shape, StackedLayer


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The part of the stored tensor `key` that begins at `start`: a `tensor` of the network."""

    key: str
    stored_shape: Shape
    start: Shape
    rule: Rule
    tensor: LazyTensor

    @property
    def shape(self) -> Shape:
        return (1, *self.tensor.shape) if isinstance(self.rule, StackedLayer) else self.tensor.shape

    def read(self) -> Tensor:
        """The values, contiguous and alone in their storage."""
        value = self.tensor.read()
        assert (tuple(value.shape), value.dtype) == (self.tensor.shape, self.tensor.dtype), self.key
        (stored,) = self.rule.split(value)
        alone = torch.empty(stored.shape, dtype=stored.dtype)
        return alone.copy_(stored)


def pieces_of(tensors: Mapping[str, LazyTensor], *, shape: DiTShape) -> Iterator[Piece]:
    """The pieces of the network, all layers of one stored tensor after each other; nothing is read yet."""
    return pieces_by(rules_for(shape, NEMO, prefix="module."), tensors)


def pieces_by(rules: Mapping[str, Rule], tensors: Mapping[str, LazyTensor]) -> Iterator[Piece]:
    """As pieces_of, of a network whose tensors are stored as `rules` say."""
    assert tensors.keys() == rules.keys(), f"not the network: {sorted(tensors.keys() ^ rules.keys())[:3]}"
    for name in sorted(rules, key=lambda name: rules[name].names):
        rule, tensor = rules[name], tensors[name]
        assert tensor.shape == rule.shape, f"{name} is {tensor.shape}, not {rule.shape}"
        stored_shape = rule.stored_shape()
        start = (getattr(rule, "layer", 0), *(0 for _ in stored_shape[1:]))
        (key,) = rule.names
        yield Piece(key=key, stored_shape=stored_shape, start=start, rule=rule, tensor=tensor)


def write_common_files(folder: Path, *, backend: str) -> None:
    """What Megatron needs beside the tensors: the layout's name, and an empty dictionary of other state."""
    backends = {"sharded_backend": backend, "common_backend": "torch"}
    versions = {"sharded_backend_version": 1, "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backends | versions))
    torch.save({}, folder / "common.pt")
