"""The nano world's clips as the networks' training reads them: latents, and embeddings of captions.

N clips, B clips at a time, T frames, H W rows and columns, C channels, L text length, D text width.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from cosmos_nemo.catalog import Task
from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer
from cosmos_nemo.training.nano.captions import PHRASINGS, caption
from cosmos_nemo.training.nano.tokenizer_clips import to_video
from cosmos_nemo.training.nano.world import NUM_FRAMES, TRAINED, draw_clips
from cosmos_nemo.training.prepare import encode_clips

PAIR_FRAMES = 10
"""Of an interpolator's clip: two given ones, and eight between them."""
PAIR_SPANS = (1.0, 12.0)
"""Frames of a clip that a pair may lie apart."""
PAIRED = tuple(scene for scene in TRAINED if scene.motion != "bounces")
"""What an interpolator learns from: two moments of a bounce do not say where between them it turned, and a
network that has seen such pairs makes the still bounce, too."""
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Clips:
    """How many clips, for which task, and what is said of them."""

    count: int
    task: Task
    negative_share: float
    """Of the clips, whose text is the default negative prompt instead of their caption."""
    seed: int


def encoded(
    clips: Clips,
    *,
    tokenizer: AnyTokenizer,
    text_encoder: TextEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Clips of the trained scenes in equal shares, as training.data.InMemory has them, on `device`.

    Whole ones; for an interpolator ten moments of each, of the scenes in PAIRED.
    """
    dice = numpy.random.RandomState(clips.seed)
    texts, latents, text_of = _Texts(), [], []
    choices = PAIRED if clips.task is Task.WORLD_INTERPOLATOR else TRAINED
    scenes = [choices[number % len(choices)] for number in range(clips.count)]
    with tokenizer:
        for start in range(0, clips.count, _AT_ONCE):
            some = scenes[start : start + _AT_ONCE]
            seed = clips.seed * 1_000_003 + start
            times_BT = None
            if clips.task is Task.WORLD_INTERPOLATOR:
                times_BT = pair_times(len(some), span=PAIR_SPANS, seed=seed)
            drawn = draw_clips(some, seed=seed, device=device, times_BT=times_BT)
            video_BCTHW = to_video(drawn).to(dtype)
            latents.append(encode_clips(tokenizer, video_BCTHW, task=clips.task).to(dtype))
            for scene in some:
                phrasing = PHRASINGS[dice.randint(len(PHRASINGS))]
                is_negative = dice.random_sample() < clips.negative_share
                text_of.append(
                    texts.number(DEFAULT_NEGATIVE_PROMPT if is_negative else caption(scene, phrasing))
                )
    with text_encoder as encode:
        embedded = torch.cat([encode([text]).to(dtype) for text in texts.all])
    return {
        "latents_NCTHW": torch.cat(latents),
        "texts_MLD": embedded,
        "text_of_N": torch.tensor(text_of, device=device),
    }


def pair_times(count: int, *, span: tuple[float, float], seed: int) -> Tensor:
    """Ten moments each of `count` clips, for draw_clips: [B, 10], at even distances, all within the clip.

    span: the least and the most frames of the clip from the first moment to the last.
    """
    dice = torch.Generator().manual_seed(seed)
    share_B, place_B = torch.rand(2, count, generator=dice)
    way_B = (span[0] + (span[1] - span[0]) * share_B) / (NUM_FRAMES - 1)
    return (1 - way_B[:, None]) * place_B[:, None] + way_B[:, None] * torch.linspace(0, 1, PAIR_FRAMES)


class _Texts:
    """Texts in the order they were first met."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]
