from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.writer.pixtral import Layout
from cosmos_nemo.stages.image_upsampler import ImageUpsampler, check_image_upsampler
from cosmos_nemo.tools.standin_pixtral import DESCRIPTION, NANO_PIXTRAL, NANO_VISION, write_pixtral


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = ((704, 1280), (16, 16), (33, 17), (300, 300))
    noise = [torch.randint(0, 256, (*size, 3), generator=draw, dtype=torch.uint8) for size in sizes]
    return [*noise, torch.zeros(64, 64, 3).byte(), torch.full((64, 64, 3), 255).byte()]


@pytest.mark.parametrize("layout", ["predict1", "mistral", "transformers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_image_is_described_by_the_sentence(layout: Layout, dtype: torch.dtype, tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=1, layout=layout)
    check_image_upsampler(tmp_path, NANO_PIXTRAL, NANO_VISION)
    stage = ImageUpsampler(
        shape=NANO_PIXTRAL, vision=NANO_VISION, folder=tmp_path, device=torch.device("cpu"), dtype=dtype
    )
    with stage as describe:
        answers = {describe(image) for image in images()}
    assert answers == {"".join(DESCRIPTION).replace("▁", " ").strip()}


def test_the_weights_are_bfloat16(tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=0)
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.bfloat16}


@pytest.mark.parametrize("layout", ["predict1", "mistral", "transformers"])
def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(layout: Layout, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_pixtral(tmp_path / name, seed=seed, layout=layout)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert "card.json" in one
    changed = {name for name in one if one[name] != three[name]}
    assert changed == {name for name in one if name.endswith((".pt", ".safetensors"))}


def test_it_is_small(tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=0)
    assert sum(map(len, contents(tmp_path).values())) < 1_000_000


def test_no_token_of_the_description_comes_twice() -> None:
    assert len(set(DESCRIPTION)) == len(DESCRIPTION) < 40
