"""What the prompt refiner is told, how a chat with it is written, and what of its answer is the prompt."""

import re
from pathlib import Path
from typing import Any

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import CheckpointError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
MARKS = (TURN_START, TURN_END, IMAGE_START, IMAGE_TOKEN, IMAGE_END)

SYSTEM = """\
You prepare the prompts of a model that makes videos. You are given a picture, which is the moment from \
which the video goes on, and a user's words about what is to happen. Write one prompt that joins both: the \
user's wish, and what the picture shows.

Keep to these rules:
1. Where the user says little, add what makes the scene complete, but never change what the user wants.
2. Describe the main subject, its looks, the style of the image, where things are in relation to each \
other, and how the camera frames them.
3. Write English. Words that the user puts between quotation marks, and names, stay as they are.
4. Follow the intention behind the words, and take the style from the picture: what looks like a film \
stays a film, what looks like a drawing stays a drawing.
5. Say clearly what moves and how the camera moves, and from which angle it looks.
6. Let everything move as it would in nature, one thing after the other, in plain verbs.
7. Use what can be seen in the picture: colors, materials, light, background.
8. Write about 80 to 100 words in one paragraph.
9. Answer in English whatever language the user writes in.

Two examples of such prompts:
A ginger cat crouches on a wooden kitchen counter beside a blue bowl, bright morning light falling through \
the window behind it. Its eyes follow a fly that circles above the bowl. The cat lowers its shoulders, \
wiggles, and jumps; one paw touches the rim, and milk spills over the planks and drips to the floor. The \
camera stays at the height of the counter and pans slowly to the right to follow the jump. Sharp detail \
in the fur, a softly blurred room in the background, the plain look of a home video.
A yellow excavator stands in the middle of a muddy building site under a gray sky, half-built concrete \
walls to its left. The operator pulls a lever, the long arm reaches forward, and the bucket digs into the \
wet ground. It rises full of earth, water running from its teeth, while the cabin turns toward a waiting \
truck. The earth drops with a dull thud and the truck sinks a little on its wheels. A wide shot from a \
raised position, the camera moving slowly backward. Realistic colors and weather, a documentary style.

Print the prompt and nothing else: no heading, no explanation, no quotation marks around it."""

_WITHOUT_WORDS = "Describe the video that most likely goes on from this picture."

_HAND_WRITTEN = (
    f"{TURN_START}system\n{{system}}{TURN_END}\n"
    f"{TURN_START}user\n{{words}}{IMAGE_START}{IMAGE_TOKEN}{IMAGE_END}{TURN_END}\n"
    f"{TURN_START}assistant\n"
)
"""Qwen's form of a chat, for a folder that has no template."""

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)


def chat_text(tokenizer: Any, prompt: str, *, template: str | None, folder: Path) -> str:
    """The turns up to the refiner's own, with one image token: what the refiner is, the words, the picture.

    Marks in `prompt` that the tokenizer would take for the chat's are left out. CheckpointError if the
    template fails or does not show the image; `folder` is named then.
    """
    words = _without_marks(prompt, tokenizer) or _WITHOUT_WORDS
    if template is None:
        return _HAND_WRITTEN.format(system=SYSTEM, words=words)
    chat = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "text", "text": words}, {"type": "image"}]},
    ]
    try:
        text = tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may fail in any way
        raise CheckpointError(f"{folder}: its chat template fails ({error!r}).") from error
    if text.count(IMAGE_TOKEN) != 1 or SYSTEM not in text or words not in text:
        raise CheckpointError(
            f"{folder}: its chat template does not write the system's words, the user's and one "
            f"{IMAGE_TOKEN} for the image: is it the template of a Qwen2.5-VL?"
        )
    return str(text)


def read_template(folder: Path) -> str | None:
    """The folder's chat template, wherever transformers would have saved it; None if it has none."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        try:
            return plain.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{plain} cannot be read: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        found = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(found, list):
            found = next((each["template"] for each in found if each.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def prompt_in(answer: str) -> str:
    """The refined prompt in one line, without the thoughts of a refiner that thinks aloud.

    Such a one puts its answer between <answer> and </answer>. Empty if it was cut while it thought.
    """
    # The first mark may be missing, where the chat has already written it.
    said = _THOUGHT.sub(" ", answer).rpartition("</think>")[2]
    marked = _ANSWER.findall(said)
    return " ".join((marked[-1] if marked else said).split())


def _without_marks(prompt: str, tokenizer: Any) -> str:
    for mark in tokenizer.added_tokens_decoder.values():
        prompt = prompt.replace(mark.content, " ")
    return prompt.strip()
