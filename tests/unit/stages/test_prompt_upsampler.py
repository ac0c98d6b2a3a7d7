import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cosmos_nemo.checkpoint.language_names import language_rules
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler, UpsamplerError, check_upsampler
from cosmos_nemo.tools.standin_upsampler import NANO_UPSAMPLER, write_upsampler

PROMPT = "A teal robot is cooking food in a kitchen."
ANSWER = "In soft light the camera holds still while a scene moves slowly from left to right."
REQUEST = "Upsample the short caption to a long caption: "
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upsampler")
    write_upsampler(folder, seed=0)
    return folder


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(released, tmp_path / "upsampler")


class CountingUpsampler(PromptUpsampler):
    builds = 0

    def build(self) -> torch.nn.Module:
        self.builds += 1
        return super().build()


def upsampler(folder: Path, **options: Any) -> CountingUpsampler:
    return CountingUpsampler(folder=folder, device=CPU, **{"shape": NANO_UPSAMPLER, **options})


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        if value is None:
            content.pop(name, None)
        else:
            content[name] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, **changes: float) -> None:
    tensors = torch.load(folder / "model.pt")
    for name, value in changes.items():
        tensors[f"{name}.weight"].fill_(value)
    torch.save(tensors, folder / "model.pt")


def test_the_answer_is_one_clean_line(released: Path) -> None:
    with upsampler(released) as upsample:
        assert upsample(PROMPT) == ANSWER
        assert {p.dtype for p in upsample.module.parameters()} == {torch.bfloat16}


def test_the_model_reads_one_turn_of_a_chat_with_the_request(released: Path) -> None:
    stage = upsampler(released)
    tokens = stage._chat_tokens("a  cat")
    assert stage._tokenizer.decode(tokens) == f"<s>[INST] {REQUEST}a cat[/INST]"
    assert tokens.count(stage._tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_a_chat_template_has_the_same_turn(folder: Path) -> None:
    expected = upsampler(folder)._chat_tokens(PROMPT)
    edit(folder / "tokenizer_config.json", chat_template=None)
    stage = upsampler(folder)
    assert stage._tokenizer.chat_template is None
    assert stage._chat_tokens(PROMPT) == expected
    check_upsampler(folder, NANO_UPSAMPLER)


def test_tokens_are_made_as_the_file_says_where_transformers_would_correct_a_mistral(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes large vocabularies beside an old config.json for faulty, and changes how text is cut."""
    from transformers import PreTrainedTokenizerFast

    prompt = "The robot R2D2 of 1984"
    expected = upsampler(folder)._chat_tokens(prompt)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["vocab"] += [[f"filler{i}", -99.0] for i in range(100_000)]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        assert upsampler(folder)._chat_tokens(prompt) == expected
        assert "regex" not in caplog.text
        PreTrainedTokenizerFast.from_pretrained(folder)
        assert "regex" in caplog.text
    finally:
        library.removeHandler(caplog.handler)


def test_entering_reads_no_weights_and_the_first_prompt_does(released: Path) -> None:
    stage = upsampler(released)
    with stage:
        assert stage.builds == 0 and stage.module is None
        stage("a")
        stage("b")
    with stage:
        stage("c")
    assert stage.builds == 1


def test_an_offloaded_upsampler_is_parked_on_leaving_and_works_again(released: Path) -> None:
    stage = upsampler(released, offload=True)
    with stage:
        stage(PROMPT)
    tensors = [*stage.module.parameters(), *stage.module.buffers()]
    assert all(tensor.numel() == 0 for tensor in tensors)
    with stage:
        assert all(tensor.numel() == 0 for tensor in tensors)
        assert stage(PROMPT) == ANSWER
    assert stage.builds == 1


def test_a_prompt_above_the_word_limit_comes_back_unread(released: Path) -> None:
    long = "word  " * 3 + "\nword "
    stage = upsampler(released, word_limit=3)
    with stage:
        assert stage(long) == long and stage.builds == 0
        assert stage("word " * 3) == ANSWER


def test_the_word_limit_is_250_unless_told(released: Path) -> None:
    stage = upsampler(released)
    with stage:
        assert stage("a " * 251) == "a " * 251 and stage.builds == 0
        assert stage("a " * 250) == ANSWER


def test_a_prompt_that_leaves_no_room_comes_back_with_a_warning(
    released: Path, caplog: pytest.LogCaptureFixture
) -> None:
    length = len(upsampler(released)._chat_tokens(PROMPT))
    narrow = upsampler(released, shape=replace(NANO_UPSAMPLER, max_length=length + 31))
    with narrow, caplog.at_level(logging.WARNING):
        assert narrow(PROMPT) == PROMPT and narrow.builds == 0
    assert f"has {length} tokens of the {length + 31}" in caplog.text
    wide = upsampler(released, shape=replace(NANO_UPSAMPLER, max_length=length + 32))
    with wide:
        assert wide(PROMPT) == ANSWER


@pytest.mark.parametrize(("max_length", "expected"), [(4096, 512), (200, None)])
def test_the_answer_has_512_tokens_or_what_the_prompt_leaves(
    max_length: int, expected: int | None, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(model: object, prompt: list[int], **options: Any) -> list[int]:
        asked.append(options | {"length": len(prompt)})
        return [9, options["end_token"]]

    monkeypatch.setattr("cosmos_nemo.stages.prompt_upsampler.answer_tokens", answer)
    with upsampler(released, shape=replace(NANO_UPSAMPLER, max_length=max_length), seed=5) as upsample:
        upsample(PROMPT)
    (options,) = asked
    assert options["num_tokens"] == (expected or max_length - options["length"])
    assert options["temperature"] == 0.01 and options["seed"] == 5


def test_an_answer_that_does_not_end_is_kept_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = torch.load(folder / "model.pt")
    stage = upsampler(folder)
    tokenizer = stage._tokenizer
    tensors["output.weight"][tokenizer.eos_token_id] = 0
    right, stop = (tokenizer.convert_tokens_to_ids(piece) for piece in ("▁right", "."))
    tensors["output.weight"][right] += tensors["tok_embeddings.weight"][stop]
    torch.save(tensors, folder / "model.pt")
    stage.shape = replace(NANO_UPSAMPLER, max_length=len(stage._chat_tokens(PROMPT)) + 40)
    with stage, caplog.at_level(logging.WARNING):
        assert stage(PROMPT).startswith(ANSWER + " right. right. ")
    assert "cut: it has not ended after 40 tokens" in caplog.text


def test_no_warning_for_an_answer_that_ends(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with upsampler(released) as upsample, caplog.at_level(logging.WARNING):
        upsample(PROMPT)
    assert caplog.text == ""


def test_the_same_prompt_makes_the_same_text_and_no_global_random_state_moves(released: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with upsampler(released) as upsample:
        assert upsample(PROMPT) == upsample(PROMPT)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_answer_is_an_error_of_this_prompt_alone_that_says_how_to_go_on(folder: Path) -> None:
    tensors = torch.load(folder / "model.pt")
    turn_end = upsampler(folder)._tokenizer.convert_tokens_to_ids("[/INST]")
    tensors["output.weight"].zero_()
    tensors["output.weight"][2] = tensors["tok_embeddings.weight"][turn_end]
    torch.save(tensors, folder / "model.pt")
    with (
        upsampler(folder) as upsample,
        pytest.raises(ItemError, match=r"no text.*--disable_prompt_upsampler") as caught,
    ):
        upsample(PROMPT)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert survives(caught.value)


def survives(error: Exception) -> bool:
    """As itself, the way to the other ranks."""
    copy = pickle.loads(pickle.dumps(error))
    return type(copy) is type(error) and str(copy) == str(error)


def test_logits_that_are_not_finite_are_an_error_of_every_prompt_that_names_the_folder(folder: Path) -> None:
    edit_weights(folder, norm=float("nan"))
    with (
        upsampler(folder) as upsample,
        pytest.raises(UpsamplerError, match=rf"{folder} cannot answer: its logits are NaN") as caught,
    ):
        upsample(PROMPT)
    assert not isinstance(caught.value, ItemError)
    assert "\n" not in str(caught.value) and survives(caught.value)


def test_a_tokenizer_of_another_model_is_an_error_before_the_weights(released: Path) -> None:
    stage = upsampler(released, shape=replace(NANO_UPSAMPLER, vocab_size=100))
    with stage, pytest.raises(CheckpointError, match="but the model has 100"):
        stage(PROMPT)
    assert stage.builds == 0


def test_a_folder_in_the_names_of_transformers_answers_the_same(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "model.pt")
    tensors = {
        name: rule.read(checkpoint) for name, rule in language_rules(NANO_UPSAMPLER, checkpoint).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "model.pt").unlink()
    check_upsampler(folder, NANO_UPSAMPLER)
    with upsampler(folder) as upsample:
        assert upsample(PROMPT) == ANSWER


def test_the_released_file_counts_whatever_lies_beside_it(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "consolidated.safetensors")
    check_upsampler(folder, NANO_UPSAMPLER)
    with upsampler(folder) as upsample:
        assert upsample(PROMPT) == ANSWER


def test_a_complete_folder_passes_the_check_without_transformers(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    check_upsampler(released, NANO_UPSAMPLER)


def test_a_model_of_another_size_fails_the_check(released: Path) -> None:
    with pytest.raises(CheckpointError, match="3 layers and width 96"):
        check_upsampler(released, replace(NANO_UPSAMPLER, num_layers=3))


@pytest.mark.parametrize(
    ("lost", "complaint"),
    [("model.pt", "holds no checkpoint"), ("tokenizer.json", "has no tokenizer: tokenizer.json is missing")],
)
def test_a_missing_file_fails_the_check(lost: str, complaint: str, folder: Path) -> None:
    (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=complaint):
        check_upsampler(folder, NANO_UPSAMPLER)


def test_a_truncated_model_fails_the_check(folder: Path) -> None:
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        check_upsampler(folder, NANO_UPSAMPLER)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer_fails_the_check(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        check_upsampler(folder, NANO_UPSAMPLER)


def test_a_tokenizer_that_does_not_say_how_an_answer_ends_fails_the_check(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    check_upsampler(folder, NANO_UPSAMPLER)
    edit(folder / "special_tokens_map.json", eos_token=None)
    with pytest.raises(CheckpointError, match="which token ends an answer"):
        check_upsampler(folder, NANO_UPSAMPLER)


def test_a_tokenizer_with_neither_template_nor_marks_fails_the_check(folder: Path) -> None:
    edit(folder / "tokenizer.json", added_tokens=[{"content": "</s>"}])
    check_upsampler(folder, NANO_UPSAMPLER)
    edit(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(CheckpointError, match=r"no token \[/INST\]"):
        check_upsampler(folder, NANO_UPSAMPLER)
