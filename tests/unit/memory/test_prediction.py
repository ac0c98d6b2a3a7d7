import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.memory import GIB, host_bytes, order_of, peak, predict, stage_memory
from cosmos_nemo.plan import Plan
from tests.unit.memory.cards import NOTHING, SMALL, THREE


def test_the_peaks_measured_with_nothing_offloaded_are_predicted() -> None:
    stages = stage_memory(SMALL, guardrails=False, upsamples=False)
    assert [each.name for each in stages] == ["text_encoder", "denoise", "tokenizer"]
    assert peak(stages[:1], offload=NOTHING, is_batch=False) / GIB == pytest.approx(9.7, rel=0.01)
    assert peak(stages[:2], offload=NOTHING, is_batch=False) / GIB == pytest.approx(29.3, rel=0.01)
    assert peak(stages, offload=NOTHING, is_batch=False) / GIB == pytest.approx(29.5, rel=0.01)


def test_the_peak_measured_of_predict2_is_predicted() -> None:
    """Of the 14B, whose network needs most, in a run that found its text's embeddings in the cache."""
    card = CARDS["Cosmos-Predict2-14B-Video2World"]
    stages = stage_memory(card, height=432, width=768, num_frames=81, guardrails=False, upsamples=False)
    without_text = tuple(each for each in stages if each.name != "text_encoder")
    found = peak(without_text, offload=NOTHING, is_batch=False, order=order_of(card)) / GIB
    assert found == pytest.approx(32.08, rel=0.012) and found > 32.08 - 0.1


def test_the_parts_of_a_split_network_take_far_less_of_the_host_than_copies() -> None:
    network = frozenset({"denoise"})
    whole, split = (predict(SMALL, offload=network, plan=Plan(tp=tp)).host for tp in (1, 4))
    assert whole < split < 1.5 * whole
    assert predict(SMALL, offload=network, plan=Plan(cp=4)).host == 4 * whole


def test_a_prediction_is_made_of_the_same_parts() -> None:
    plan = Plan(cp=2)
    options = {"height": 352, "num_frames": 57, "plan": plan, "guardrails": False}
    found = predict(SMALL, offload=THREE, is_batch=True, **options)
    assert found.stages == stage_memory(SMALL, **options)
    assert found.peak == peak(found.stages, offload=THREE, is_batch=True)
    assert found.host == host_bytes(found.stages, THREE, plan=plan)


def test_videos_whose_tokens_are_drawn_together_are_counted() -> None:
    card = CARDS["Cosmos-Predict1-12B"]
    one, eight = (predict(card, batch_size=size) for size in (1, 8))
    drawing = [{each.name: each for each in way.stages}["token_generation"].work for way in (one, eight)]
    assert drawing[1] == pytest.approx(8 * drawing[0], rel=0.01) and drawing[0] > 2.0e9  # keys and values
    # Alone, the decoder's frames take more than a cache; of eight videos the caches decide.
    assert one.peak < eight.peak < one.peak + drawing[1]
    assert predict(card) == one
