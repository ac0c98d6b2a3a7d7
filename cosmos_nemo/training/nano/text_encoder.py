"""Training of a small T5 encoder to read the captions of the nano world.

Each token's output learns what its text says of colour, shape, motion and ground, and which token it is: so a
word that means nothing yet, as a new subject's name, stays apart from all others.

Letters: B texts, L text length, D text width.
"""

import math
import random
import re
import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_nemo.checkpoint.writer.text_encoder import (
    Vocabulary,
    english_vocabulary,
    english_words,
    text_config,
    untrained_text_weights,
    write_text_folder,
    write_text_tokenizer,
)
from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT
from cosmos_nemo.training.nano.captions import (
    PHRASINGS,
    SUBJECT_PREFIX,
    UNSEEN_PHRASINGS,
    caption,
    subject_caption,
    words,
)
from cosmos_nemo.training.nano.world import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    TRAINED,
    Scene,
)

OnStep = Callable[[int, float], None]
"""Takes the number of finished steps and the loss of the last one that was read."""

Labels = dict[str, str]
"""What a text says: values by attribute, without those it does not name."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "ground": GROUNDS,
}

_IDENTITY = "token"
_LEARNING_RATE = 2e-3
_WARM_UP = 0.05
_BETAS = (0.9, 0.98)
_LARGEST_GRADIENT = 1.0
_LOSS_EVERY = 20
_FRAGMENTS = (
    "A {colour} {shape}.",
    "A {shape}.",
    "{colour}",
    "{shape}",
    "{motion}",
    "{moving}",
    "It {motion}.",
    "It is {colour}.",
    "The {shape} is {colour}.",
    "A {shape} {motion}.",
    "A {colour} {shape} {motion}.",
    "A {colour} {shape} {moving}.",
    "A {ground} background.",
    "The background is {ground}.",
    "It {motion} on a {ground} background.",
    "A {shape} on a {ground} background.",
    "A {colour} {shape} on a {ground} background.",
    "This is a video of a {shape}.",
)
"""Captions that leave things out."""


@dataclass(frozen=True)
class LabelledText:
    """A text and what it says."""

    text: str
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class TrainedTextEncoder:
    """A T5 encoder and the linear heads it was trained with; all tensors float32 on the CPU.

    heads: [values + 1, D] per attribute, the last row for texts that do not name it.
    """

    config: dict[str, Any]
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    heads: dict[str, Tensor]


def train_text_encoder(
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    text_dim: int = 64,
    text_length: int = 128,
    on_step: OnStep = lambda step, loss: None,
) -> TrainedTextEncoder:
    """A T5 encoder of width `text_dim` trained from nothing on captions and other texts, in float32.

    Its outputs have a root mean square of 1: the last norm keeps its gains of one. The held-out scenes and
    UNSEEN_PHRASINGS are not in the texts.
    """
    vocabulary = english_vocabulary((*words(), *(word.capitalize() for word in _telling_words())))
    config = text_config(text_dim=text_dim, vocab_size=len(vocabulary))
    model, heads = _untrained(config, seed=seed, device=device)
    tokenize = _tokenizer(vocabulary, text_length=text_length)
    parameters = [values for values in (*model.parameters(), *heads.parameters()) if values.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=_LEARNING_RATE, betas=_BETAS, weight_decay=0.0, fused=device.type == "cuda"
    )
    dice, shown = random.Random(seed), math.nan
    for step in range(num_steps):
        texts = [draw_text(dice) for _ in range(batch_size)]
        loss = _loss(model, heads, texts, tokenize=tokenize, device=device)
        _set_rate(optimizer, step=step, num_steps=num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
        optimizer.step()
        # Reading the loss waits for the device.
        if step % _LOSS_EVERY == 0 or step == num_steps - 1:
            shown = float(loss)
        on_step(step + 1, shown)
    return TrainedTextEncoder(
        config=config,
        vocabulary=vocabulary,
        weights={name: values.detach().cpu() for name, values in model.named_parameters()},
        heads={name: heads.get_parameter(f"{name}.weight").detach().cpu() for name in ATTRIBUTES},
    )


def write_text_encoder(folder: Path, trained: TrainedTextEncoder) -> None:
    """Writes config.json, the tokenizer and model.safetensors, which stages.text_encoder reads."""
    write_text_folder(folder, config=trained.config, vocabulary=trained.vocabulary, weights=trained.weights)


def unseen_texts() -> list[LabelledText]:
    """The held-out scenes in the phrasings that training did not use."""
    return [
        LabelledText(caption(scene, phrasing), asdict(scene))
        for scene in sorted(HELD_OUT)
        for phrasing in UNSEEN_PHRASINGS
    ]


@torch.no_grad()
def measure_accuracy(
    encode: Callable[[list[str]], Tensor], texts: Sequence[LabelledText], *, heads: Mapping[str, Tensor]
) -> dict[str, float]:
    """For each attribute the part 0..1 of all tokens whose output tells it, by the heads of training.

    encode: texts to embeddings [B, L, D], zero past each text's end, as stages.text_encoder makes them.
    """
    text_BLD = encode([each.text for each in texts]).float().cpu()
    is_token_BL = text_BLD.any(dim=2)
    accuracy = {}
    for name, head in heads.items():
        wanted_B = torch.tensor([_label(name, each.labels) for each in texts])
        right_BL = (text_BLD @ head.T).argmax(dim=2) == wanted_B[:, None]
        accuracy[name] = float(right_BL[is_token_BL].float().mean())
    return accuracy


def draw_text(dice: random.Random) -> LabelledText:
    """A text of one of several kinds: whole captions, incomplete ones, other subjects, other words."""
    kinds = (_whole, _fragment, _replaced, _subject, _other_words, _negative)
    (kind,) = dice.choices(kinds, weights=(40, 20, 15, 10, 10, 5))
    drawn = kind(dice)
    return LabelledText(_respelled(_with_other_words(drawn.text, dice), dice), drawn.labels)


def _whole(dice: random.Random) -> LabelledText:
    scene = dice.choice(TRAINED)
    return LabelledText(caption(scene, dice.choice(PHRASINGS)), asdict(scene))


def _fragment(dice: random.Random) -> LabelledText:
    scene, fragment = dice.choice(TRAINED), dice.choice(_FRAGMENTS)
    fields = {field for _, field, _, _ in string.Formatter().parse(fragment) if field}
    named = {"motion" if field == "moving" else field for field in fields}
    labels = {name: value for name, value in asdict(scene).items() if name in named}
    return LabelledText(caption(scene, fragment), labels)


def _replaced(dice: random.Random) -> LabelledText:
    """A caption with words that say nothing in place of some of colour, shape and ground."""
    labels = asdict(dice.choice(TRAINED))
    values = dict(labels)
    for name in dice.sample(("colour", "shape", "ground"), k=dice.randint(1, 3)):
        values[name] = _salad(dice, length=1)
        del labels[name]
    return LabelledText(caption(Scene(**values), dice.choice(PHRASINGS)), labels)


def _subject(dice: random.Random) -> LabelledText:
    motion, ground = dice.choice(MOTIONS), dice.choice(GROUNDS)
    prefix = SUBJECT_PREFIX if dice.random() < 0.5 else ""
    return LabelledText(prefix + subject_caption(motion, ground), {"motion": motion, "ground": ground})


def _other_words(dice: random.Random) -> LabelledText:
    return LabelledText(_salad(dice, length=dice.randint(0, 40)), {})


def _negative(dice: random.Random) -> LabelledText:
    """The default negative prompt, or a part of it."""
    said = DEFAULT_NEGATIVE_PROMPT.split()
    begin, end = sorted(dice.choices(range(len(said) + 1), k=2)) if dice.random() < 0.5 else (0, len(said))
    return LabelledText(" ".join(said[begin:end]), {})


def _with_other_words(text: str, dice: random.Random) -> str:
    """Mostly the text itself; else after a sentence that says nothing, or with such words anywhere in it."""
    way = dice.random()
    if way < 0.15:
        return f"A video of {_salad(dice, length=dice.randint(1, 4))}. {text}"
    if way < 0.25:
        return f"{text} {_salad(dice, length=dice.randint(1, 12))}."
    said = text.split()
    if way < 0.45:
        for _ in range(dice.randint(1, 4)):
            at = dice.randint(0, len(said))
            # What is light is another thing than what is light blue.
            if at == 0 or said[at - 1] != "light":
                said.insert(at, _salad(dice, length=1))
    return " ".join(said)


def _respelled(text: str, dice: random.Random) -> str:
    """Mostly the text itself; else without capitals, with many, or without punctuation."""
    way = dice.random()
    if way < 0.05:
        return text.lower()
    if way < 0.1:
        return " ".join(word.capitalize() if dice.random() < 0.5 else word for word in text.split())
    return re.sub(r"[.,]", "", text) if way < 0.15 else text


def _salad(dice: random.Random, *, length: int) -> str:
    return " ".join(dice.choices(_MEANINGLESS, k=length))


def _telling_words() -> set[str]:
    """Words of which an attribute's value may consist."""
    values = [value for values in ATTRIBUTES.values() for value in values]
    return {word for value in values for word in value.split()} | {"moving", "bouncing", "staying"}


_MEANINGLESS = tuple(
    sorted(word for word in {*english_words(), *words()} if word.lower() not in _telling_words())
)


def _untrained(config: dict[str, Any], *, seed: int, device: torch.device) -> tuple[nn.Module, nn.ModuleDict]:
    """The encoder, and a linear head per attribute and one that names the token itself."""
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(**config)).train()
    model.load_state_dict(untrained_text_weights(config, seed=seed), strict=False)
    model.encoder.final_layer_norm.weight.requires_grad_(False)
    sizes = {name: len(values) + 1 for name, values in ATTRIBUTES.items()} | {_IDENTITY: config["vocab_size"]}
    width, dice = config["d_model"], torch.Generator().manual_seed(seed + 1)
    heads = nn.ModuleDict({name: nn.Linear(width, size, bias=False) for name, size in sizes.items()})
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=width**-0.5, generator=dice)
    return model.to(device), heads.to(device)


def _tokenizer(vocabulary: Vocabulary, *, text_length: int) -> Callable[[list[str]], Any]:
    """The tokenizer as the stage has it, padding to the longest text."""
    from transformers import T5TokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        write_text_tokenizer(Path(folder), vocabulary)
        tokenizer = T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    return lambda texts: tokenizer(
        texts, padding="longest", truncation=True, max_length=text_length, return_tensors="pt"
    )


def _set_rate(optimizer: torch.optim.Optimizer, *, step: int, num_steps: int) -> None:
    """Linear warm-up, then half a cosine to zero."""
    begin = max(1, round(_WARM_UP * num_steps))
    relative = min((step + 1) / begin, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * relative


def _loss(
    model: nn.Module,
    heads: nn.ModuleDict,
    texts: Sequence[LabelledText],
    *,
    tokenize: Callable[[list[str]], Any],
    device: torch.device,
) -> Tensor:
    """Sum over the heads of the mean cross-entropy of all tokens."""
    tokens = tokenize([each.text for each in texts])
    ids_BL, mask_BL = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    hidden_BLD = model(ids_BL, attention_mask=mask_BL).last_hidden_state
    rows, columns = tokens.attention_mask.nonzero(as_tuple=True)
    rows, columns = rows.to(device), columns.to(device)
    hidden_ND = hidden_BLD[rows, columns]
    loss = F.cross_entropy(heads[_IDENTITY](hidden_ND), ids_BL[rows, columns])
    for name in ATTRIBUTES:
        wanted_B = torch.tensor([_label(name, each.labels) for each in texts], device=device)
        loss = loss + F.cross_entropy(heads[name](hidden_ND), wanted_B[rows])
    return loss


def _label(name: str, labels: Labels) -> int:
    values = ATTRIBUTES[name]
    return values.index(labels[name]) if name in labels else len(values)
