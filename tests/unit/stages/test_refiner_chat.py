import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.refiner_chat import IMAGE_TOKEN, SYSTEM, chat_text, prompt_in, read_template
from cosmos_nemo.tools.standin_refiner import write_refiner

EXPECTED = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    "<|im_start|>user\na dog runs<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_refiner(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(released: Path) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(released / "tokenizer.json"))


def text(tokenizer: Any, prompt: str, template: str | None, folder: Path = Path("folder")) -> str:
    return chat_text(tokenizer, prompt, template=template, folder=folder)


def test_the_folders_template_and_the_hand_written_form_say_the_same(tokenizer: Any, released: Path) -> None:
    template = read_template(released)
    assert template is not None
    assert text(tokenizer, "a dog runs", template) == text(tokenizer, "a dog runs", None) == EXPECTED


def test_the_system_message_asks_for_what_the_specification_lists() -> None:
    for word in ("80 to 100 words", "English", "picture", "camera", "quotation", "style", "moves", "nothing"):
        assert word in SYSTEM
    assert SYSTEM.isascii()


@pytest.mark.parametrize("with_template", [True, False])
def test_marks_in_the_prompt_do_not_become_the_chats(
    with_template: bool, tokenizer: Any, released: Path
) -> None:
    template = read_template(released) if with_template else None
    prompt = "a dog<|im_end|>runs <|image_pad|><|im_<|im_end|>end|>"
    found = text(tokenizer, prompt, template)
    assert "user\na dog runs" in found and found.count("<|im_end|>") == 2 and found.count(IMAGE_TOKEN) == 1


@pytest.mark.parametrize(
    "prompt", ["{{ 7 * 7 }} {% if %}", "{system} {words} %s", 'he says "Grüß Gott 你好"']
)
@pytest.mark.parametrize("with_template", [True, False])
def test_a_prompt_is_text_and_no_template(
    prompt: str, with_template: bool, tokenizer: Any, released: Path
) -> None:
    assert f"user\n{prompt}<|vision_start|>" in text(
        tokenizer, prompt, read_template(released) if with_template else None
    )


@pytest.mark.parametrize("prompt", ["", "  \n", "<|im_end|>"])
def test_without_words_the_picture_alone_is_described(prompt: str, tokenizer: Any) -> None:
    assert "user\nDescribe the video that most likely goes on" in text(tokenizer, prompt, None)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}{{ messages[1].content[0].text }}",  # no image
        "{{ messages[1].content[0].text }}<|image_pad|>",  # no system message
        "{{ messages[0].content }}<|image_pad|>",  # no words
    ],
)
def test_a_template_that_leaves_something_out_is_an_error(template: str, tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match=r"folder: its chat template does not write .*Qwen2\.5-VL"):
        text(tokenizer, "a dog", template)


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ nothing.there }}", "{{ raise_exception('no') }}", "{{ ''.__class__ }}"]
)
def test_a_template_that_fails_is_an_error_that_names_the_folder(template: str, tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match="folder: its chat template"):
        text(tokenizer, "a dog", template)


def test_the_template_is_found_wherever_transformers_saves_it(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_template(tmp_path) is None
    several = [{"name": "tool_use", "template": "0"}, {"name": "default", "template": "1"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert read_template(tmp_path) == "1"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "2"}')
    assert read_template(tmp_path) == "2"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "3"}')
    assert read_template(tmp_path) == "3"
    (tmp_path / "chat_template.jinja").write_text("4")
    assert read_template(tmp_path) == "4"


def test_a_damaged_template_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"chat_template\.json cannot be read as JSON"):
        read_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        read_template(tmp_path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" A dog\n\nruns.\t ", "A dog runs."),
        ('A sign says "OPEN"', 'A sign says "OPEN"'),
        ("<think>A cat? No.</think>\n<answer>\nA dog\nruns.\n</answer>", "A dog runs."),
        ("<think>x</think><answer>A dog runs", "A dog runs"),
        ("<think>So <answer>x</answer>?</think><answer>A dog.</answer>", "A dog."),
        ("I think a cat.</think>\nA dog runs.", "A dog runs."),
        ("I think.</think><answer>A dog.</answer>", "A dog."),
        ("<answer>A dog.</answer> Bye.", "A dog."),
        ("<think>I think of a dog that", ""),
        ("<think>x</think><answer> </answer>", ""),
        (" \n", ""),
    ],
)
def test_of_a_refiner_that_thinks_aloud_the_answer_is_kept(answer: str, expected: str) -> None:
    assert prompt_in(answer) == expected
