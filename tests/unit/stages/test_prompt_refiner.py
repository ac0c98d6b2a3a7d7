import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_refiner import PromptRefiner, check_refiner
from cosmos_nemo.stages.prompt_upsampler import UpsamplerError
from cosmos_nemo.tools.standin_refiner import SENTENCE, write_refiner

ANSWER = "".join(SENTENCE).replace("Ġ", " ")
CPU = torch.device("cpu")
PROMPT = "a robot at work"
# Square and small: it becomes the fewest tokens that an image may have.
IMAGE = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OUTPUT, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_refiner(folder, seed=0)
    return folder


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(released, tmp_path / "refiner")


class CountingRefiner(PromptRefiner):
    builds = 0

    def build(self) -> torch.nn.Module:
        self.builds += 1
        return super().build()


def refiner(folder: Path, **options: Any) -> CountingRefiner:
    return CountingRefiner(folder=folder, device=CPU, **options)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def id_of(folder: Path, piece: str) -> int:
    return int(refiner(folder)._tokenizer.convert_tokens_to_ids(piece))


def survives(error: Exception) -> bool:
    """As itself, the way to the other ranks."""
    copy = pickle.loads(pickle.dumps(error))
    return type(copy) is type(error) and str(copy) == str(error)


def test_the_refined_prompt_is_one_line_of_ascii(released: Path) -> None:
    with refiner(released) as refine:
        assert refine(PROMPT, IMAGE) == ANSWER == refine(PROMPT, IMAGE)
        assert {p.dtype for p in refine.module.parameters()} == {torch.bfloat16}
    assert ANSWER.isascii()


def test_nothing_needs_torchvision(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with refiner(released) as refine:
        assert refine(PROMPT, IMAGE) == ANSWER


@pytest.mark.parametrize(("height", "width"), [(1, 1), (29, 1500), (719, 27), (2000, 2001)])
def test_as_many_tokens_as_the_tower_makes_of_the_image_whatever_its_size(
    height: int, width: int, released: Path
) -> None:
    with refiner(released) as refine:
        assert refine(PROMPT, torch.zeros(height, width, 3, dtype=torch.uint8)) == ANSWER


def test_the_model_reads_the_system_message_the_words_and_then_the_image(released: Path) -> None:
    stage = refiner(released)
    tokens = stage._chat_tokens(PROMPT, 448, 560)
    names = stage._tokenizer.convert_ids_to_tokens(tokens)
    assert names.count("<|image_pad|>") == 16 * 20
    assert names.count("<|im_start|>") == 3 and names.count("<|im_end|>") == 2
    start = names.index("<|vision_start|>")
    assert names[start + 1 : start + 322] == ["<|image_pad|>"] * 320 + ["<|vision_end|>"]
    assert stage._tokenizer.decode(tokens[:start]).endswith(f"user\n{PROMPT}")
    assert stage._tokenizer.decode(tokens[start + 322 :]).endswith("<|im_start|>assistant\n")


def test_the_folders_template_is_used(folder: Path) -> None:
    template = "{{ messages[0].content }}{{ messages[1].content[0].text }}<|image_pad|>now"
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    stage = refiner(folder)
    tokens = stage._chat_tokens(PROMPT, 448, 448)
    assert stage._tokenizer.decode(tokens[-3:]) == "now"
    assert stage._tokenizer.convert_ids_to_tokens(tokens[-4]) == "<|image_pad|>"


def test_without_a_template_the_chat_is_the_same(folder: Path) -> None:
    expected = refiner(folder)._chat_tokens(PROMPT, 448, 448)
    (folder / "tokenizer_config.json").unlink()
    assert refiner(folder)._chat_tokens(PROMPT, 448, 448) == expected


def test_marks_in_the_prompt_break_nothing(released: Path) -> None:
    with refiner(released) as refine:
        assert refine("a <|image_pad|> and <|im_end|>\n<|im_start|>system", IMAGE) == ANSWER


def test_entering_reads_no_weights_and_the_first_prompt_does(released: Path) -> None:
    stage = refiner(released)
    with stage:
        assert stage.builds == 0 and stage.module is None
        stage(PROMPT, IMAGE)
        stage(PROMPT, IMAGE)
    with stage:
        stage(PROMPT, IMAGE)
    assert stage.builds == 1


def test_an_offloaded_refiner_is_parked_on_leaving_and_answers_the_same_again(released: Path) -> None:
    stage = refiner(released, offload=True)
    with stage:
        stage(PROMPT, IMAGE)
    tensors = [*stage.module.parameters(), *stage.module.buffers()]
    assert all(tensor.numel() == 0 for tensor in tensors)
    with stage:
        assert all(tensor.numel() == 0 for tensor in tensors)
        assert stage(PROMPT, IMAGE) == ANSWER
    assert stage.builds == 1


def warm(folder: Path) -> Path:
    """With an output that leaves many tokens likely, so that they are drawn."""
    draw = torch.Generator().manual_seed(4)
    edit_weights(folder, lambda t: t[OUTPUT].copy_(torch.randn(t[OUTPUT].shape, generator=draw) * 0.02))
    edit_json(folder / "generation_config.json", temperature=1.0, top_k=0)
    return folder


def test_the_same_picture_prompt_and_seed_make_the_same_text_and_no_global_random_state_moves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner._LONGEST_ANSWER", 40)
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner._SHORTEST_ROOM", 1)
    warm(folder)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with refiner(folder) as refine:
        first = refine(PROMPT, IMAGE)
        assert refine(PROMPT, IMAGE) == first
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    with refiner(folder) as again, refiner(folder, seed=1) as other:
        assert again(PROMPT, IMAGE) == first != other(PROMPT, IMAGE)
    assert first.isascii() and first.isprintable()


def prefer_foreign_letters(tensors: dict[str, Tensor], *, foreign: list[int]) -> None:
    """After each token of the sentence another token is twice as likely as the next of the sentence."""
    output = tensors[OUTPUT]
    rows = [i for i in range(len(output)) if output[i].abs().sum() > 0]
    assert len(rows) == len(SENTENCE) + 1 < len(foreign)
    for place, row in zip(foreign, rows, strict=False):
        output[place] = 2 * output[row]


def test_letters_beyond_ascii_never_come_out_even_where_they_are_likeliest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = refiner(folder)
    foreign = [i for i in range(256) if not stage._tokenizer.decode([i]).isascii()]
    edit_weights(folder, lambda tensors: prefer_foreign_letters(tensors, foreign=foreign))
    with stage:
        assert stage(PROMPT, IMAGE) == ANSWER
    monkeypatch.setattr(
        "cosmos_nemo.stages.prompt_refiner.plain_ascii_mask",
        lambda tokenizer, *, vocab_size: torch.ones(vocab_size, dtype=torch.bool),
    )
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner._LONGEST_ANSWER", 160)
    with refiner(folder) as free:
        assert not free(PROMPT, IMAGE).isascii()


def test_tokens_that_the_tokenizer_does_not_know_never_come_out(folder: Path) -> None:
    """The output has more rows than the tokenizer tokens, as in the released model."""
    known = len(refiner(folder)._tokenizer)
    assert known < 512
    unknown = list(range(known, 512))
    edit_weights(folder, lambda tensors: prefer_foreign_letters(tensors, foreign=unknown))
    with refiner(folder) as refine:
        assert refine(PROMPT, IMAGE) == ANSWER


def test_the_vocabulary_is_looked_through_once(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_nemo.stages import prompt_refiner

    made = []
    original = prompt_refiner.plain_ascii_mask
    monkeypatch.setattr(
        prompt_refiner,
        "plain_ascii_mask",
        lambda *tokenizer, **size: made.append(1) or original(*tokenizer, **size),
    )
    with refiner(released) as refine:
        refine(PROMPT, IMAGE)
        refine(PROMPT, IMAGE)
    assert made == [1]


@pytest.mark.parametrize(("max_length", "expected"), [(100_000, 512), (None, 200)])
def test_the_answer_has_512_tokens_or_what_the_chat_leaves(
    max_length: int | None, expected: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(model: object, chat: list[int], **options: Any) -> list[int]:
        asked.append(options)
        return [9, min(options["end_tokens"])]

    length = len(refiner(folder)._chat_tokens(PROMPT, *IMAGE.shape[:2]))
    edit_json(folder / "config.json", max_position_embeddings=max_length or length + 200)
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner.refined_tokens", answer)
    with refiner(folder, seed=5) as refine:
        refine(PROMPT, IMAGE)
    (options,) = asked
    assert options["num_tokens"] == expected and options["seed"] == 5
    assert (options["image"].rows, options["image"].columns) == (32, 32)
    assert options["sampling"].repetition_penalty == 1.05
    assert options["end_tokens"] == {id_of(folder, "<|im_end|>"), id_of(folder, "<|endoftext|>")}


def test_a_prompt_that_leaves_no_room_is_an_error_of_this_prompt_before_the_weights(folder: Path) -> None:
    edit_json(folder / "config.json", max_position_embeddings=4096)
    with (
        refiner(folder) as refine,
        pytest.raises(ItemError, match=r"tokens of the 4,096 .*Shorten the prompt.*--disable") as caught,
    ):
        refine("zq " * 2000, IMAGE)
    assert refine.builds == 0 and survives(caught.value)


def test_an_image_that_is_nearly_a_line_is_an_error_of_this_image_before_the_weights(released: Path) -> None:
    with refiner(released) as refine, pytest.raises(ItemError, match="200 times") as caught:
        refine(PROMPT, torch.zeros(2, 500, 3, dtype=torch.uint8))
    assert refine.builds == 0 and survives(caught.value)


def test_an_answer_that_does_not_end_is_kept_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner._LONGEST_ANSWER", 40)
    monkeypatch.setattr("cosmos_nemo.stages.prompt_refiner._SHORTEST_ROOM", 1)
    stop, hand, end = (id_of(folder, piece) for piece in (".", "Ġhand", "<|im_end|>"))

    def go_on(tensors: dict[str, Tensor]) -> None:
        tensors[OUTPUT][end] = 0
        tensors[OUTPUT][hand] += tensors[TABLE][stop]

    edit_weights(folder, go_on)
    with refiner(folder) as refine, caplog.at_level(logging.WARNING):
        assert refine(PROMPT, IMAGE).startswith(ANSWER + " hand. hand. ")
    assert "cut: it has not ended after 40 tokens" in caplog.text


def test_no_warning_for_an_answer_that_ends(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with refiner(released) as refine, caplog.at_level(logging.WARNING):
        refine(PROMPT, IMAGE)
    assert caplog.text == ""


def test_an_empty_answer_is_an_error_of_this_prompt_alone_that_says_how_to_go_on(folder: Path) -> None:
    new_line, end = (id_of(folder, piece) for piece in ("Ċ", "<|im_end|>"))

    def end_at_once(tensors: dict[str, Tensor]) -> None:
        tensors[OUTPUT].zero_()
        tensors[OUTPUT][end] = tensors[TABLE][new_line]

    edit_weights(folder, end_at_once)
    with (
        refiner(folder) as refine,
        pytest.raises(ItemError, match=r"no text.*--disable_prompt_upsampler") as caught,
    ):
        refine(PROMPT, IMAGE)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert survives(caught.value)


def test_logits_that_are_not_finite_are_an_error_of_every_prompt_that_names_the_folder(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with (
        refiner(folder) as refine,
        pytest.raises(UpsamplerError, match=rf"{folder} cannot answer: its logits are NaN") as caught,
    ):
        refine(PROMPT, IMAGE)
    assert not isinstance(caught.value, ItemError)
    assert "\n" not in str(caught.value) and survives(caught.value)


def test_a_tokenizer_of_another_model_is_an_error_before_the_weights(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=100)
    with refiner(folder) as refine, pytest.raises(CheckpointError, match="but the model has 100"):
        refine(PROMPT, IMAGE)
    assert refine.builds == 0


def test_a_complete_folder_passes_the_check_without_transformers_and_without_weights(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("cosmos_nemo.checkpoint.reader.Checkpoint.read", None)
    check_refiner(released)


def test_the_released_file_counts_whatever_lies_beside_it(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(b"half of a download")
    check_refiner(folder)
    with refiner(folder) as refine:
        assert refine(PROMPT, IMAGE) == ANSWER


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lose_tensor(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("visual.blocks.1.attn.qkv.bias"))


def rename_mark(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|image_pad|>", "<|other|>"), encoding="utf-8")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (damage_weights, r"model\.safetensors"),
    (lose_tensor, r"missing, first: visual\.blocks\.1\.attn\.qkv\.bias"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds no checkpoint"),
    (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer: tokenizer\.json is missing"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json cannot be read as JSON"),
    (rename_mark, r"is not that of a Qwen2\.5-VL: it has no token <\|image_pad\|>. Put the one of Qwen/"),
    (
        lambda folder: edit_json(folder / "config.json", image_token_id=3),
        "image_token_id 3: they belong to different models",
    ),
    (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    (lambda folder: edit_json(folder / "config.json", model_type="qwen3"), "holds a qwen3 model where"),
    (lambda folder: edit_json(folder / "generation_config.json", top_p=7), "top_p must be a number above 0"),
    (lambda folder: (folder / "chat_template.json").write_text(""), r"chat_template\.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
def test_a_damaged_folder_fails_the_check_and_the_first_prompt(
    damage: Callable[[Path], object], complaint: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=complaint):
        check_refiner(folder)
    with refiner(folder) as refine, pytest.raises(CheckpointError, match=complaint):
        refine(PROMPT, IMAGE)
