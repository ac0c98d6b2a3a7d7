from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.stages.prompt_refiner import PromptRefiner, check_refiner
from cosmos_nemo.tools.standin_refiner import SENTENCE, Names, write_refiner

PROMPTS = ("", "a dog", "猫", "x" * 99)
ANSWER = "".join(SENTENCE).replace("Ġ", " ")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (*s, 3), generator=draw, dtype=torch.uint8) for s in ((90, 160), (33, 17))]
    return [*noise, torch.zeros(64, 64, 3).byte(), torch.full((64, 64, 3), 255).byte()]


@pytest.mark.parametrize("names", ["released", "newer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_prompt_is_refined_to_the_sentence(names: Names, dtype: torch.dtype, tmp_path: Path) -> None:
    write_refiner(tmp_path, seed=1, names=names)
    check_refiner(tmp_path)
    with PromptRefiner(folder=tmp_path, device=torch.device("cpu"), dtype=dtype) as refine:
        answers = {refine(prompt, image) for prompt, image in zip(PROMPTS, images(), strict=True)}
    assert answers == {ANSWER}


def test_the_weights_are_bfloat16_under_the_names_asked_for(tmp_path: Path) -> None:
    expected: dict[Names, set[str]] = {
        "released": {"model", "visual", "lm_head"},
        "newer": {"model", "lm_head"},
    }
    for names, starts in expected.items():
        write_refiner(tmp_path / names, seed=0, names=names)
        checkpoint = open_checkpoint(tmp_path / names)
        assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.bfloat16}
        assert {name.partition(".")[0] for name in checkpoint.names()} == starts


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_refiner(tmp_path / name, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert {name for name in one if one[name] != three[name]} == {"model.safetensors"}


def test_it_is_small(tmp_path: Path) -> None:
    write_refiner(tmp_path, seed=0)
    assert sum(map(len, contents(tmp_path).values())) < 1_000_000


def test_no_token_of_the_sentence_comes_twice() -> None:
    assert len(set(SENTENCE)) == len(SENTENCE) < 40
