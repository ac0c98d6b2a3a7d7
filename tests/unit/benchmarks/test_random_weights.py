from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.random_weights import write_random_safetensors
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_formats import token_rules_for
from cosmos_nemo.checkpoint.writer.token_transformer import RELEASED
from cosmos_nemo.tools.standin_tokens import random_token_parameter
from tests.fakes import CPU
from tests.tiny_tokens import BASE

RULES = token_rules_for(BASE, RELEASED)


def test_every_tensor_lies_whole_in_its_place_under_the_released_names(tmp_path: Path) -> None:
    made: dict[str, Tensor] = {}

    def make(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        made[name] = random_token_parameter(name, size, generator)
        return made[name]

    path = tmp_path / "model.safetensors"
    # Buffers that hold neither a whole tensor nor a whole number of its rows.
    write_random_safetensors(path, RULES, make, device=CPU, buffer_bytes=100, num_threads=3)
    checkpoint = open_checkpoint(path)
    assert {*checkpoint.names()} == {name for rule in RULES.values() for name in rule.names}
    assert "model.layers.1.feed_forward.w3.weight" in checkpoint.names()
    for name, rule in RULES.items():
        assert torch.equal(rule.read(checkpoint), made[name].to(torch.bfloat16)), name


def test_weights_are_the_same_whatever_the_threads_and_differ_by_name(tmp_path: Path) -> None:
    for threads in (1, 4):
        path = tmp_path / f"{threads}.safetensors"
        write_random_safetensors(path, RULES, random_token_parameter, device=CPU, num_threads=threads)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "4.safetensors").read_bytes()
    checkpoint = open_checkpoint(path)
    first, second = (checkpoint.read(f"model.layers.{layer}.attention.wo.weight") for layer in (0, 1))
    assert not torch.equal(first, second)


def test_a_failure_in_every_thread_ends_the_writing(tmp_path: Path) -> None:
    class Broken(Exception):
        pass

    def make(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        raise Broken(name)

    with pytest.raises(Broken):
        write_random_safetensors(tmp_path / "a", RULES, make, device=CPU, num_threads=2)
