from dataclasses import replace
from math import prod

import pytest

from cosmos_nemo.catalog import CARDS, LanguageShape, WanTokenizerShape
from cosmos_nemo.memory import GIB, ORDER, decode_shares, peak, published_rows, share_memory, stage_memory
from cosmos_nemo.memory.frames import tokenizer_memory
from cosmos_nemo.plan import Plan
from tests.unit.memory.cards import NANO, SMALL, THREE, alone, stage


def test_the_peaks_measured_with_every_stage_offloaded_are_predicted() -> None:
    stages = stage_memory(SMALL, guardrails=False, upsamples=False)
    assert [alone(each) for each in stages] == pytest.approx([9.7, 20.3, 5.9], rel=0.03)
    assert peak(stages, offload=THREE, is_batch=True) / GIB == pytest.approx(20.3, rel=0.01)


def test_a_text2image_has_no_upsampler_and_its_videos_network_but_for_the_mask() -> None:
    image, video = (CARDS[f"Cosmos-Predict2-2B-{kind}"] for kind in ("Text2Image", "Video2World"))
    stages = {stage.name: stage for stage in stage_memory(image)}
    assert list(stages) == ["text_guard", "text_encoder", "denoise", "tokenizer", "video_guard"]
    of_video = {stage.name: stage for stage in stage_memory(video)}
    mask = image.network.patch_size**2 * image.network.hidden_size * 2
    assert of_video["denoise"].weights - stages["denoise"].weights == mask
    assert stages["denoise"].work < of_video["denoise"].work / 10
    assert [most for _, most in published_rows(image)] == sorted(
        (most for _, most in published_rows(image)), reverse=True
    )


def test_predict2s_tokenizer_and_refiner_have_the_weights_of_their_files() -> None:
    from cosmos_nemo.checkpoint.wan_tokenizer_names import tensor_shapes as of_wan

    card = CARDS["Cosmos-Predict2-2B-Video2World"]
    assert isinstance(card.tokenizer, WanTokenizerShape)
    assert stage(card, "tokenizer").weights == 2 * sum(map(prod, of_wan(card.tokenizer).values()))
    assert stage(card, "upsampler").weights == 2 * 8_292_166_656
    assert stage(card, "tokenizer").work < stage(card, "tokenizer", height=1056, width=1920).work


def test_the_peaks_measured_of_guards_and_upsampler_are_predicted() -> None:
    found = [alone(stage(SMALL, name)) for name in ("text_guard", "upsampler", "video_guard")]
    assert found == pytest.approx([15.1, 23.0, 5.0], rel=0.01)


def test_work_grows_with_the_video_and_weights_do_not() -> None:
    whole = {each.name: each for each in stage_memory(SMALL)}
    for change in ({"height": 352}, {"width": 640}, {"num_frames": 33}):
        for each in stage_memory(SMALL, **change):
            assert each.weights == whole[each.name].weights
            if each.name in ("denoise", "tokenizer"):
                assert each.work < whole[each.name].work


def test_stages_that_are_off_take_nothing_and_those_of_flags_what_the_released_ones_do() -> None:
    assert [each.name for each in stage_memory(SMALL)] == list(dict.fromkeys(ORDER))
    core = ["text_encoder", "denoise", "tokenizer"]
    assert [each.name for each in stage_memory(SMALL, guardrails=False)] == ["upsampler", *core]
    assert [each.name for each in stage_memory(SMALL, upsamples=False)] == [
        "text_guard",
        *core,
        "video_guard",
    ]
    assert [each.name for each in stage_memory(NANO, guardrails=False, upsamples=False)] == core
    given = {each.name: each for each in stage_memory(NANO, guardrails=True, upsamples=False)}
    assert list(given) == ["text_guard", *core, "video_guard"]
    assert given["text_guard"] == stage(SMALL, "text_guard")
    upsampler = replace(NANO, upsampler=LanguageShape(num_layers=1))
    assert 0 < stage(upsampler, "upsampler").weights < stage(SMALL, "upsampler").weights


@pytest.mark.parametrize(
    ("name", "latent", "ranks", "expected"),
    [
        ("Cosmos-Predict1-7B-Text2World", (16, 88, 160), 1, [16]),
        ("Cosmos-Predict1-7B-Text2World", (16, 88, 160), 2, [8, 8]),
        ("Cosmos-Predict1-7B-Text2World", (16, 88, 160), 8, [2] * 8),
        ("Cosmos-Predict1-7B-Text2World", (16, 88, 160), 16, [2] * 8),
        ("Cosmos-Predict1-7B-Text2World", (16, 132, 240), 2, [8, 8]),
        ("Cosmos-Predict1-7B-Text2World", (3, 88, 160), 8, [3]),
        ("Cosmos-Predict2-2B-Video2World", (24, 88, 160), 4, [24]),
        ("Cosmos-Predict2-2B-Video2World", (24, 88, 160), 6, [4] * 6),
        ("Cosmos-Predict2-2B-Video2World", (24, 88, 160), 8, [3] * 8),
        ("Cosmos-Predict2-2B-Video2World", (21, 54, 96), 2, [11, 10]),
        ("Cosmos-Predict2-2B-Video2World", (24, 54, 96), 2, [24]),
        ("Cosmos-Predict2-2B-Video2World", (24, 54, 96), 3, [8] * 3),
        ("Cosmos-Predict2-2B-Video2World", (24, 132, 240), 8, [24]),
    ],
)
def test_ranks_decode_together_where_each_has_frames_enough_and_memory_for_them(
    name: str, latent: tuple[int, int, int], ranks: int, expected: list[int]
) -> None:
    assert decode_shares(CARDS[name].tokenizer, latent, ranks) == expected


def test_the_decode_of_wans_tokenizer_is_predicted_as_measured() -> None:
    """In pieces of 1 latent frame, as a rank alone does it, and of 4, as a share of six ranks is."""
    card, latent = CARDS["Cosmos-Predict2-2B-Video2World"], (24, 88, 160)
    alone, shared = tokenizer_memory(card, latent), share_memory(card.tokenizer, latent, 4)
    for found, measured in ((alone, 7.7), (shared, 17.4)):
        assert (found.weights + found.work) / GIB == pytest.approx(measured, rel=0.03)


def test_more_gpus_need_no_more_memory_each() -> None:
    """What ranks that decode together would need on top is asked for when the time comes."""
    card = CARDS["Cosmos-Predict2-2B-Video2World"]
    for size in ({"height": 432, "width": 768, "num_frames": 81}, {}):
        one, six = (stage_memory(card, plan=Plan(cp=ranks), **size) for ranks in (1, 6))
        assert [stage.work >= other.work for stage, other in zip(one, six, strict=True)] == [True] * len(one)


@pytest.mark.parametrize("share", [1, 2, 8])
def test_a_share_of_predict1s_tokenizer_needs_what_a_piece_does(share: int) -> None:
    card, latent = CARDS["Cosmos-Predict1-7B-Text2World"], (16, 88, 160)
    assert share_memory(card.tokenizer, latent, share) == tokenizer_memory(card, latent)


def test_shares_of_any_size_stay_below_what_a_prefetch_leaves_free() -> None:
    card = CARDS["Cosmos-Predict2-2B-Video2World"]
    for rows, columns in ((54, 96), (88, 160), (120, 120), (132, 240)):
        for ranks in range(2, 17):
            latent = 24, rows, columns
            shares = decode_shares(card.tokenizer, latent, ranks)
            if len(shares) > 1:
                assert share_memory(card.tokenizer, latent, shares[0]).work < 20 * GIB
