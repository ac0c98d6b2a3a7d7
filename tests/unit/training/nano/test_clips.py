from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import Task, find_card
from cosmos_nemo.checkpoint.locate import EMBEDDED, locate, tokenizer_of
from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for
from cosmos_nemo.tools.standin import write_standin
from cosmos_nemo.training.nano.clips import PAIR_SPANS, Clips, encoded, pair_times
from cosmos_nemo.training.nano.world import NUM_FRAMES, TRAINED, draw_clips

CPU = torch.device("cpu")
CARD = find_card("Cosmos-Nano-Text2World")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(shape=CARD.tokenizer, folder=EMBEDDED / "Cosmos-Nano-Tokenizer-CV8x8x8", device=CPU)


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    folder: Path = EMBEDDED / "Cosmos-Nano-T5"
    return TextEncoder(folder=folder, text_length=128, text_dim=64, device=CPU, dtype=torch.float32)


def make(task: Task, tokenizer: AnyTokenizer, text_encoder: TextEncoder, **other: float) -> dict:
    clips = Clips(**{"count": 3, "task": task, "negative_share": 0.0, "seed": 2} | other)  # type: ignore[arg-type]
    options = {"tokenizer": tokenizer, "text_encoder": text_encoder, "device": CPU, "dtype": torch.float32}
    return encoded(clips, **options)  # type: ignore[arg-type]


def test_moments_of_a_pair_lie_evenly_within_the_clip_at_the_distances_asked_for() -> None:
    times_BT = pair_times(500, span=PAIR_SPANS, seed=1)
    assert times_BT.shape == (500, 10) and times_BT.min() >= 0 and times_BT.max() <= 1 + 1e-6
    steps = times_BT.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand(500, 9), rtol=0, atol=1e-6)
    spans = (times_BT[:, -1] - times_BT[:, 0]) * (NUM_FRAMES - 1)
    assert PAIR_SPANS[0] <= spans.min() < 1.5 and 11.5 < spans.max() <= PAIR_SPANS[1] + 1e-4
    assert times_BT[:, 0].min() < 0.02 and times_BT[:, -1].max() > 0.98
    assert not torch.equal(pair_times(500, span=PAIR_SPANS, seed=2), times_BT)


def test_whole_clips_are_the_encoded_clips_of_the_trained_scenes(
    tokenizer: Tokenizer, text_encoder: TextEncoder
) -> None:
    made = make(Task.VIDEO2WORLD, tokenizer, text_encoder)
    clips = draw_clips(TRAINED[:3], seed=2 * 1_000_003, device=CPU)
    with tokenizer:
        expected = tokenizer.encode(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    torch.testing.assert_close(made["latents_NCTHW"], expected, rtol=0, atol=1e-4)
    assert made["text_of_N"].shape == (3,) and made["texts_MLD"].shape[1:] == (128, 64)


def test_an_interpolators_clips_are_ten_moments_whose_last_is_an_image_and_none_bounces(
    tokenizer: Tokenizer, text_encoder: TextEncoder
) -> None:
    bounces = [number for number, scene in enumerate(TRAINED) if scene.motion == "bounces"]
    count = bounces[0] + 1  # as many as it takes to meet one in TRAINED
    made = make(Task.WORLD_INTERPOLATOR, tokenizer, text_encoder, count=count)
    seed = 2 * 1_000_003
    times_BT = pair_times(count, span=PAIR_SPANS, seed=seed)
    scenes = [scene for scene in TRAINED if scene.motion != "bounces"][:count]
    clips = draw_clips(scenes, seed=seed, device=CPU, times_BT=times_BT)
    assert clips.shape == (count, 10, 128, 128, 3)
    video = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with tokenizer:
        parts = [tokenizer.encode(video[:, :, :9]), tokenizer.encode(video[:, :, 9:], as_image=True)]
    torch.testing.assert_close(made["latents_NCTHW"], torch.cat(parts, dim=2), rtol=0, atol=1e-4)


def test_the_negative_prompt_takes_its_share(tokenizer: Tokenizer, text_encoder: TextEncoder) -> None:
    made = make(Task.WORLD_INTERPOLATOR, tokenizer, text_encoder, negative_share=1.0)
    with text_encoder as encode:
        torch.testing.assert_close(made["texts_MLD"], encode([DEFAULT_NEGATIVE_PROMPT]))
    assert made["text_of_N"].tolist() == [0, 0, 0]


def test_clips_are_encoded_by_the_tokenizer_of_predict2_too(
    text_encoder: TextEncoder, tmp_path: Path
) -> None:
    card = find_card("Cosmos-Nano-Predict2-Video2World")
    write_standin([card], tmp_path, seed=0, layout="folder")
    folder = locate(tokenizer_of(card), assets_dir=tmp_path)
    assert folder is not None
    wan = tokenizer_for(card.tokenizer, folder=folder, device=CPU)
    made = make(card.task, wan, text_encoder, count=2)
    assert made["latents_NCTHW"].shape == (2, 16, card.latent_frames(NUM_FRAMES), 16, 16)
    clips = draw_clips(TRAINED[:2], seed=2 * 1_000_003, device=CPU)
    with wan:
        expected = wan.encode(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    torch.testing.assert_close(made["latents_NCTHW"], expected, rtol=0, atol=1e-4)
