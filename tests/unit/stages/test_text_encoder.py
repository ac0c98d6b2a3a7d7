import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.text_cache import TextCache
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.text_folder import text_folder_identity
from cosmos_nemo.tools.standin_text import write_text_encoder

PROMPTS = ["A teal robot is cooking food in a kitchen.", "poor quality", ""]
DIM = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_text_encoder(folder, text_dim=DIM, seed=0)
    return folder


class CountingTextEncoder(TextEncoder):
    builds = 0

    def build(self) -> torch.nn.Module:
        self.builds += 1
        return super().build()


def encoder(
    folder: Path, *, length: int = 48, offload: bool = False, **options: object
) -> CountingTextEncoder:
    options = {"dtype": torch.float32, **options}
    device = torch.device("cpu")
    return CountingTextEncoder(
        folder=folder, text_length=length, text_dim=DIM, device=device, offload=offload, **options
    )


def encode(folder: Path, prompts: list[str], **options: object) -> torch.Tensor:
    with encoder(folder, **options) as stage:
        return stage(prompts)


def test_the_embedding_is_that_of_transformers_with_zeros_past_the_end(folder: Path) -> None:
    from transformers import T5EncoderModel, T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(folder)
    model = T5EncoderModel.from_pretrained(folder).eval()
    text_BLD = encode(folder, PROMPTS)
    assert text_BLD.shape == (3, 48, DIM) and text_BLD.dtype == torch.float32
    for prompt, text_LD in zip(PROMPTS, text_BLD, strict=True):
        tokens = tokenizer(prompt, padding="max_length", max_length=48, return_tensors="pt")
        length = int(tokens.attention_mask.sum())
        with torch.no_grad():
            expected_LD = model(**tokens).last_hidden_state[0]
        torch.testing.assert_close(text_LD[:length], expected_LD[:length])
        assert 0 < length < 48 and bool((text_LD[:length] != 0).any(dim=1).all())
        assert not text_LD[length:].any()


def test_the_amount_of_padding_does_not_change_an_embedding(folder: Path) -> None:
    short, long = (encode(folder, PROMPTS[:2], length=length) for length in (40, 90))
    torch.testing.assert_close(long[:, :40], short, atol=1e-5, rtol=0)


def test_the_default_dtype_is_bfloat16(folder: Path) -> None:
    stage = TextEncoder(folder=folder, text_length=48, text_dim=DIM, device=torch.device("cpu"))
    with stage:
        text_BLD = stage(PROMPTS)
    assert text_BLD.dtype == torch.bfloat16
    assert {p.dtype for p in stage.module.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(text_BLD.float(), encode(folder, PROMPTS), atol=0.1, rtol=0.1)


def test_entering_reads_no_weights_and_the_first_prompt_does(folder: Path) -> None:
    stage = encoder(folder)
    with stage:
        assert stage.builds == 0 and stage.module is None
        stage(["a"])
        stage(["b"])
    with stage:
        stage(["c"])
    assert stage.builds == 1


def test_an_offloaded_encoder_is_parked_on_leaving_and_works_again(folder: Path) -> None:
    stage = encoder(folder, offload=True)
    with stage:
        first = stage(PROMPTS)
    assert all(p.numel() == 0 for p in stage.module.parameters())
    with stage:
        assert all(p.numel() == 0 for p in stage.module.parameters())
        assert torch.equal(stage(PROMPTS), first)
    assert stage.builds == 1


def test_cached_prompts_need_no_weights(folder: Path, tmp_path: Path) -> None:
    cache = TextCache(tmp_path)
    first = encode(folder, PROMPTS, cache=cache)
    stage = encoder(folder, cache=cache)
    with stage:
        again = stage(PROMPTS[::-1])
    assert torch.equal(again, first.flip(0)) and stage.builds == 0
    with stage:
        stage([*PROMPTS, "a new prompt"])
    assert stage.builds == 1
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("change", ["weights", "tokenizer", "dtype", "length"])
def test_the_cache_does_not_serve_another_encoder(change: str, folder: Path, tmp_path: Path) -> None:
    cache, other = TextCache(tmp_path / "cache"), tmp_path / "t5"
    shutil.copytree(folder, other)
    encode(folder, PROMPTS, cache=cache)
    options: dict[str, object] = {}
    if change == "weights":
        write_text_encoder(other, text_dim=DIM, seed=1)
    elif change == "tokenizer":
        tokenizer = json.loads((other / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"][-1][1] = -11.0
        (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        options = {"dtype": torch.bfloat16} if change == "dtype" else {"length": 49}
    stage = encoder(other, cache=cache, **options)
    with stage:
        stage(PROMPTS)
    assert stage.builds == 1


def test_the_same_encoder_in_another_folder_shares_the_cache(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("an unrelated file")
    assert text_folder_identity(tmp_path / "copy") == text_folder_identity(folder)


def test_a_damaged_cache_entry_is_encoded_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode(folder, PROMPTS[:1], cache=TextCache(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(encode(folder, PROMPTS[:1], cache=TextCache(tmp_path)), first)
    assert "damaged" in caplog.text
    assert encoder(folder, cache=TextCache(tmp_path))(PROMPTS[:1]) is not None


@pytest.mark.parametrize("cached", [False, True])
def test_a_prompt_that_is_too_long_is_cut_with_a_warning(
    cached: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "The robot slowly moves through the kitchen, " + "with light and water " * 30 + "zebra"
    cache = TextCache(tmp_path) if cached else None
    if cached:
        encode(folder, [prompt], cache=cache)
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        text_BLD = encode(folder, [prompt, "a robot"], cache=cache)
    warnings = [record.getMessage() for record in caplog.records if "Shorten it" in record.getMessage()]
    assert len(warnings) == 1
    tokens = encoder(folder)._tokenizer(prompt).input_ids
    assert "'The robot slowly moves through ...'" in warnings[0]
    assert f"has {len(tokens)} tokens, but the text encoder reads 48" in warnings[0]
    kept = warnings[0].split("'")[3].removeprefix("... ")
    lost = int(warnings[0].split("the last ")[1].split()[0])
    assert kept and prompt.split()[:-lost][-len(kept.split()) :] == kept.split()
    assert bool(text_BLD[0].any(dim=1).all())


def test_a_prompt_that_just_fits_is_not_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "robot " * 40
    length = len(encoder(folder)._tokenizer(prompt).input_ids)
    encode(folder, [prompt], length=length)
    assert "Shorten it" not in caplog.text
    encode(folder, [prompt], length=length - 1)
    assert "Shorten it" in caplog.text


def test_weights_with_a_nan_are_reported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    encode(tmp_path / "t5", ["a robot"])
    assert "NaN" in caplog.text


def test_weights_that_lack_a_tensor_stop_the_load(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(weights, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*block\.1\.layer\.1\.DenseReluDense\.wo"):
        encode(tmp_path / "t5", ["a robot"])
