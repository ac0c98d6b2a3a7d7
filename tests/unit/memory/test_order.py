from cosmos_nemo.memory import ORDER, order_of, peak, stage_memory
from tests.unit.memory.cards import BETWEEN, NOTHING, SMALL, VIDEO, made


def test_the_stages_of_what_starts_from_images_encode_before_they_denoise() -> None:
    assert order_of(SMALL) == ORDER
    order = order_of(VIDEO)
    assert order == order_of(BETWEEN) and order.index("upsampler") < order.index("text_guard")
    assert [name for name in order if name in ("tokenizer", "denoise")] == [
        "tokenizer",
        "denoise",
        "tokenizer",
    ]
    stages = stage_memory(VIDEO, guardrails=False, upsamples=False)
    assert [each.name for each in stages] == ["text_encoder", "tokenizer", "denoise"]
    one = made(tokenizer=(10, 5), denoise=(40, 70))
    assert peak(one, offload=NOTHING, is_batch=False, order=order) == 10 + 110
    assert peak(one, offload=NOTHING, is_batch=False) == 110
