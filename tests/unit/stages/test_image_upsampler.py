import json
import logging
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.image_upsampler import ImageUpsampler, check_image_upsampler
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_upsampler import UpsamplerError
from cosmos_nemo.tools.standin_pixtral import DESCRIPTION, NANO_PIXTRAL, NANO_VISION, write_pixtral
from tests.unit.stages.test_pixtral_image import transformers_image_processor

ANSWER = "".join(DESCRIPTION).replace("▁", " ").strip()
CPU = torch.device("cpu")
IMAGE = torch.randint(0, 256, (40, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixtral")
    write_pixtral(folder, seed=0)
    return folder


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(released, tmp_path / "pixtral")


class CountingUpsampler(ImageUpsampler):
    builds = 0

    def build(self) -> torch.nn.Module:
        self.builds += 1
        return super().build()


def upsampler(folder: Path, **options: Any) -> CountingUpsampler:
    sizes = {"shape": NANO_PIXTRAL, "vision": NANO_VISION}
    return CountingUpsampler(folder=folder, device=CPU, **sizes | options)


def check(folder: Path) -> None:
    check_image_upsampler(folder, NANO_PIXTRAL, NANO_VISION)


def edit_weights(folder: Path, **changes: Tensor | float) -> None:
    """Of the language model, by their names without `.weight`."""
    content = torch.load(folder / "model.pt")
    for name, value in changes.items():
        content["model"][f"model.{name}.weight"][:] = value
    torch.save(content, folder / "model.pt")


def rename_mark(folder: Path, old: str, new: str) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert f'"{old}"' in text
    (folder / "tokenizer.json").write_text(text.replace(f'"{old}"', f'"{new}"'), encoding="utf-8")


def survives(error: Exception) -> bool:
    """As itself, the way to the other ranks."""
    copy = pickle.loads(pickle.dumps(error))
    return type(copy) is type(error) and str(copy) == str(error)


def test_the_description_is_one_clean_line(released: Path) -> None:
    with upsampler(released) as describe:
        assert describe(IMAGE) == ANSWER
        assert {p.dtype for p in describe.module.parameters()} == {torch.bfloat16}


def test_nothing_needs_torchvision(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with upsampler(released) as describe:
        assert describe(IMAGE) == ANSWER


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((40, 70), 3, 5), ((16, 16), 1, 1), ((1, 200), 1, 13), ((512, 256), 16, 8), ((704, 1280), 9, 16)],
)
def test_the_model_reads_one_turn_with_a_token_for_each_patch_and_then_the_instruction(
    size: tuple[int, int], rows: int, columns: int, released: Path
) -> None:
    stage = upsampler(released)
    tokens = stage._chat_tokens(*size)
    names = stage._tokenizer.convert_ids_to_tokens(tokens)
    row = ["[IMG]"] * columns
    image = [*[*row, "[IMG_BREAK]"] * (rows - 1), *row, "[IMG_END]"]
    assert names[: len(image) + 2] == ["<s>", "[INST]", *image]
    assert names[-1] == "[/INST]" and names.count("[INST]") == names.count("<s>") == 1
    instruction = stage._tokenizer.decode(tokens[len(image) + 2 : -1])
    assert instruction.startswith("Describe the video") and "150 words" in instruction


@pytest.mark.parametrize("size", [(40, 70), (16, 16), (704, 1280)])
def test_the_tokens_are_those_of_transformers_processor(size: tuple[int, int], released: Path) -> None:
    # A newer one needs torchvision.
    module = pytest.importorskip("transformers.models.pixtral.processing_pixtral", exc_type=ImportError)
    stage, images = upsampler(released), transformers_image_processor()
    images.size = {"longest_edge": NANO_VISION.max_image_size}
    processor = module.PixtralProcessor(image_processor=images, tokenizer=stage._tokenizer)
    tokens = stage._chat_tokens(*size)
    names = stage._tokenizer.convert_ids_to_tokens(tokens)
    instruction = stage._tokenizer.decode(tokens[names.index("[IMG_END]") + 1 : -1])
    image = torch.zeros(*size, 3, dtype=torch.uint8).numpy()
    text = f"<s>[INST][IMG]\n{instruction}[/INST]"
    (expected,) = processor(images=[image], text=text, add_special_tokens=False)["input_ids"]
    assert tokens == list(expected)


def test_as_many_tokens_as_the_tower_makes_patches_whatever_the_size(released: Path) -> None:
    with upsampler(released) as describe:
        for height, width in ((1, 1), (15, 17), (31, 500), (500, 31), (256, 257), (1000, 999)):
            assert describe(torch.zeros(height, width, 3, dtype=torch.uint8)) == ANSWER


def test_entering_reads_no_weights_and_the_first_image_does(released: Path) -> None:
    stage = upsampler(released)
    with stage:
        assert stage.builds == 0 and stage.module is None
        stage(IMAGE)
        stage(IMAGE)
    with stage:
        stage(IMAGE)
    assert stage.builds == 1


def test_an_offloaded_upsampler_is_parked_on_leaving_and_works_again(released: Path) -> None:
    stage = upsampler(released, offload=True)
    with stage:
        stage(IMAGE)
    tensors = [*stage.module.parameters(), *stage.module.buffers()]
    assert all(tensor.numel() == 0 for tensor in tensors)
    with stage:
        assert all(tensor.numel() == 0 for tensor in tensors)
        assert stage(IMAGE) == ANSWER
    assert stage.builds == 1


def test_an_image_that_leaves_no_room_is_an_error_of_this_image_before_the_weights(released: Path) -> None:
    length = len(upsampler(released)._chat_tokens(*IMAGE.shape[:2]))
    narrow = upsampler(released, shape=replace(NANO_PIXTRAL, max_length=length + 31))
    with (
        narrow,
        pytest.raises(ItemError, match=rf"{length} tokens of the {length + 31} .*--disable") as caught,
    ):
        narrow(IMAGE)
    assert narrow.builds == 0 and survives(caught.value)
    with upsampler(released, shape=replace(NANO_PIXTRAL, max_length=length + 32)) as wide:
        assert wide(IMAGE) == ANSWER


@pytest.mark.parametrize(("max_length", "expected"), [(4300, 400), (200, None)])
def test_the_answer_has_400_tokens_or_what_the_image_leaves(
    max_length: int, expected: int | None, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(model: object, prompt: list[int], *, pixels_1CHW: Tensor, **options: Any) -> list[int]:
        asked.append(options | {"length": len(prompt), "pixels": tuple(pixels_1CHW.shape)})
        return [9, options["end_token"]]

    monkeypatch.setattr("cosmos_nemo.stages.image_upsampler.answer_tokens", answer)
    with upsampler(released, shape=replace(NANO_PIXTRAL, max_length=max_length), seed=5) as describe:
        describe(IMAGE)
    (options,) = asked
    assert options["num_tokens"] == (expected or max_length - options["length"])
    assert (options["temperature"], options["top_p"], options["seed"]) == (0.01, 0.9, 5)
    assert options["pixels"] == (1, 3, 48, 80) and options["end_token"] == 2


def test_a_description_that_does_not_end_is_kept_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = upsampler(folder)
    tokenizer = stage._tokenizer
    content = torch.load(folder / "model.pt")
    output, table = (content["model"][f"model.{name}.weight"] for name in ("output", "tok_embeddings"))
    last, stop = (tokenizer.convert_tokens_to_ids(piece) for piece in DESCRIPTION[-2:])
    output[tokenizer.convert_tokens_to_ids("</s>")] = 0
    output[last] += table[stop]
    torch.save(content, folder / "model.pt")
    stage.shape = replace(NANO_PIXTRAL, max_length=len(stage._chat_tokens(*IMAGE.shape[:2])) + 40)
    with stage, caplog.at_level(logging.WARNING):
        assert stage(IMAGE).startswith(ANSWER + " flower. flower. ")
    assert "cut: it has not ended after 40 tokens" in caplog.text


def test_no_warning_for_a_description_that_ends(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with upsampler(released) as describe, caplog.at_level(logging.WARNING):
        describe(IMAGE)
    assert caplog.text == ""


def test_the_same_image_makes_the_same_text_and_no_global_random_state_moves(folder: Path) -> None:
    """With an output that leaves several tokens likely, so that they are drawn."""
    content = torch.load(folder / "model.pt")
    content["model"]["model.output.weight"] *= 0.0005
    torch.save(content, folder / "model.pt")
    length = len(upsampler(folder)._chat_tokens(*IMAGE.shape[:2]))
    shape = replace(NANO_PIXTRAL, max_length=length + 40)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with upsampler(folder, shape=shape) as describe:
        first = describe(IMAGE)
        assert describe(IMAGE) == first
    assert torch.equal(torch.get_rng_state(), before)
    with upsampler(folder, shape=shape) as again, upsampler(folder, shape=shape, seed=1) as other:
        assert again(IMAGE) == first != other(IMAGE)


def test_an_empty_answer_is_an_error_of_this_image_alone_that_says_how_to_go_on(folder: Path) -> None:
    content = torch.load(folder / "model.pt")
    output, table = (content["model"][f"model.{name}.weight"] for name in ("output", "tok_embeddings"))
    turn_end = upsampler(folder)._tokenizer.convert_tokens_to_ids("[/INST]")
    output.zero_()
    output[2] = table[turn_end]
    torch.save(content, folder / "model.pt")
    with (
        upsampler(folder) as describe,
        pytest.raises(ItemError, match=r"no text.*--disable_prompt_upsampler") as caught,
    ):
        describe(IMAGE)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert survives(caught.value)


def test_logits_that_are_not_finite_are_an_error_of_every_image_that_names_the_folder(folder: Path) -> None:
    edit_weights(folder, norm=float("nan"))
    with (
        upsampler(folder) as describe,
        pytest.raises(UpsamplerError, match=rf"{folder} cannot answer: its logits are NaN") as caught,
    ):
        describe(IMAGE)
    assert not isinstance(caught.value, ItemError)
    assert "\n" not in str(caught.value) and survives(caught.value)


def test_a_tokenizer_of_another_model_is_an_error_before_the_weights(released: Path) -> None:
    stage = upsampler(released, shape=replace(NANO_PIXTRAL, vocab_size=100))
    with stage, pytest.raises(CheckpointError, match="but the model has 100"):
        stage(IMAGE)
    assert stage.builds == 0


def test_settings_beside_the_tokenizer_change_nothing(folder: Path) -> None:
    expected = upsampler(folder)._chat_tokens(32, 32)
    settings = {"chat_template": "{{ 'x' }}", "add_prefix_space": True, "eos_token": "a"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    assert upsampler(folder)._chat_tokens(32, 32) == expected


@pytest.mark.parametrize("spare", ["consolidated.safetensors", "model.safetensors"])
def test_the_released_file_counts_whatever_lies_beside_it(spare: str, folder: Path) -> None:
    (folder / spare).write_bytes(b"half of a download")
    check(folder)
    with upsampler(folder) as describe:
        assert describe(IMAGE) == ANSWER


def test_mistrals_file_counts_before_that_of_others(tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=0, layout="mistral")
    (tmp_path / "model.safetensors").write_bytes(b"half of a download")
    check(tmp_path)


def test_a_complete_folder_passes_the_check_without_transformers(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    check(released)


def test_the_check_reads_no_weights(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmos_nemo.checkpoint.reader.Checkpoint.read", None)
    check(released)


def test_a_model_of_another_size_fails_the_check(released: Path) -> None:
    with pytest.raises(CheckpointError, match="3 layers of width 96"):
        check_image_upsampler(released, replace(NANO_PIXTRAL, num_layers=3), NANO_VISION)
    with pytest.raises(CheckpointError, match="tower of 2 of 64"):
        check_image_upsampler(released, NANO_PIXTRAL, replace(NANO_VISION, hidden_size=64))


def test_a_missing_model_fails_the_check(folder: Path) -> None:
    (folder / "model.pt").unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        check(folder)


def test_a_missing_shard_fails_the_check(tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=0, layout="transformers")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        check(tmp_path)


@pytest.mark.parametrize("layout", ["predict1", "mistral", "transformers"])
def test_a_truncated_model_fails_the_check(layout: Any, tmp_path: Path) -> None:
    write_pixtral(tmp_path, seed=0, layout=layout)
    file = next(path for path in sorted(tmp_path.iterdir()) if path.suffix in (".pt", ".safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=file.name):
        check(tmp_path)


def test_a_missing_tokenizer_fails_the_check_and_the_first_image(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    complaint = (
        r"has no tokenizer\.json: put tokenizer\.json of the hub repository mistral-community/pixtral-12b"
    )
    with pytest.raises(CheckpointError, match=complaint):
        check(folder)
    with upsampler(folder) as describe, pytest.raises(CheckpointError, match=complaint):
        describe(IMAGE)


def test_mistrals_own_tokenizer_is_named_as_one_that_is_not_read(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json \(tekken\.json is not read\): put tok"):
        check(folder)


@pytest.mark.parametrize("content", ["{", "\xff", ""])
def test_a_damaged_tokenizer_fails_the_check(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read as JSON .*: put tokenizer"):
        check(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"added_tokens": []}'])
def test_json_that_is_no_tokenizer_fails_the_check(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not Pixtral's: it has no token <s>"):
        check(folder)


@pytest.mark.parametrize("mark", ["</s>", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
def test_a_tokenizer_without_a_mark_fails_the_check(mark: str, folder: Path) -> None:
    rename_mark(folder, mark, "[OTHER]")
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    assert f"it has no token {mark}. Instead, put tokenizer.json of" in str(caught.value)
