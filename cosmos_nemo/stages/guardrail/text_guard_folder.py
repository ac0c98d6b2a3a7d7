"""What lies in a Llama Guard folder, judged from its configuration and from the headers of its weights."""

from pathlib import Path
from typing import Any

from torch import nn

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.stages.text_folder import weight_files

_TOKENIZER = "tokenizer.json"
_RECOMPUTED = "rotary_emb.inv_freq"
"""End of the name of a table that old files hold and that follows from config.json."""


def check_guard_folder(folder: Path) -> None:
    """CheckpointError unless `folder` holds a complete Llama with a chat template. Reads no weights."""
    model = empty_guard(folder)
    if not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder} has no tokenizer: {_TOKENIZER} is missing.")
    end_tokens(folder, guard_tokenizer(folder))
    stored_weights(folder, model)


def guard_tokenizer(folder: Path) -> Any:
    """The tokenizer; CheckpointError if it has no chat template, with which a prompt is put to the guard."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library's own are of many kinds, down to plain Exception
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{folder} has no chat template (in tokenizer_config.json or chat_template.jinja), without which "
            "Llama Guard cannot be asked. Download the folder again."
        )
    return tokenizer


def end_tokens(folder: Path, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those of generation_config.json, else the tokenizer's own."""
    path = folder / "generation_config.json"
    ends = read_json(path, lacking="is no Llama Guard folder").get("eos_token_id") if path.is_file() else None
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        raise CheckpointError(f"{folder} does not say which token ends an answer (eos_token_id).")
    return list(ends) if isinstance(ends, list) else [ends]


def empty_guard(folder: Path) -> nn.Module:
    """The model that config.json describes, with its parameters on the meta device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = read_json(folder / "config.json", lacking="is no Llama Guard folder").get("model_type")
    if kind != "llama":
        raise CheckpointError(
            f"{folder} holds a {kind} model where Llama Guard is needed: "
            "config.json must say model_type llama."
        )
    try:
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return LlamaForCausalLM(config)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: config.json describes no Llama: {error}") from error


def stored_weights(folder: Path, model: nn.Module) -> dict[str, Checkpoint]:
    """Name of each of the model's parameters -> the open file that holds it.

    CheckpointError if one is missing or of another shape, or if there is one that the model does not have:
    a guard with other layers than it was trained with would judge at random.
    """
    stored = {name: file for file in map(open_checkpoint, weight_files(folder)) for name in file.names()}
    expected = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - expected.keys()
    if missing := sorted(expected.keys() - stored.keys()):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of the Llama that its config.json describes, "
            f"first: {missing[0]}."
        )
    surplus = sorted(
        name for name in stored.keys() - expected.keys() - tied if not name.endswith(_RECOMPUTED)
    )
    if surplus:
        raise CheckpointError(
            f"{folder} has {len(surplus)} tensors that its config.json does not know, first: {surplus[0]}."
        )
    for name, parameter in expected.items():
        if stored[name].shape(name) != tuple(parameter.shape):
            raise CheckpointError(
                f"{folder}: {name} is {stored[name].shape(name)}, "
                f"but config.json makes it {tuple(parameter.shape)}."
            )
    return {name: stored[name] for name in expected}
