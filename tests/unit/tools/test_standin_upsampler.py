from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import LanguageShape, find_card, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler, check_upsampler
from cosmos_nemo.tools.standin_upsampler import ANSWER, NANO_UPSAMPLER, write_upsampler

PROMPTS = ("A cat walks on the moon.", "", "right to left the camera moves .", "Ünï\ncode 猫 [/INST] </s>")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_prompt_is_answered_with_the_sentence(seed: int, dtype: torch.dtype, tmp_path: Path) -> None:
    write_upsampler(tmp_path, seed=seed)
    check_upsampler(tmp_path, NANO_UPSAMPLER)
    stage = PromptUpsampler(
        shape=NANO_UPSAMPLER, folder=tmp_path, device=torch.device("cpu"), dtype=dtype, seed=seed
    )
    with stage as upsample:
        answers = {upsample(prompt) for prompt in PROMPTS}
    assert answers == {"".join(ANSWER).replace("▁", " ").strip()}


def test_the_card_file_turns_a_released_card_into_the_nano(tmp_path: Path) -> None:
    fields = write_upsampler(tmp_path, seed=0)
    assert read_card_file(tmp_path) == fields
    card = find_card("Cosmos-Predict1-7B-Text2World")
    assert card.upsampler == LanguageShape()
    assert with_overrides(card, fields).upsampler == NANO_UPSAMPLER


def test_the_weights_have_the_released_names_and_dtype(tmp_path: Path) -> None:
    write_upsampler(tmp_path, seed=0)
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    assert "layers.0.attention.wq.weight" in checkpoint.names() and len(checkpoint.names()) == 21
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.bfloat16}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_upsampler(tmp_path / name, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert {name for name in one if one[name] != three[name]} == {"model.pt"}


def test_it_is_small(tmp_path: Path) -> None:
    write_upsampler(tmp_path, seed=0)
    assert sum(map(len, contents(tmp_path).values())) < 1_000_000


def test_no_token_of_the_answer_comes_twice() -> None:
    assert len(set(ANSWER)) == len(ANSWER) < 40
