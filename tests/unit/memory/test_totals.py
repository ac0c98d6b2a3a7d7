from cosmos_nemo.memory import host_bytes, peak, uses
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import OFFLOADABLE
from tests.unit.memory.cards import EVERYTHING, NOTHING, STAGES, made


def test_stages_stay_once_they_were_used() -> None:
    assert peak(STAGES[:1], offload=NOTHING, is_batch=False) == 101
    assert peak(STAGES[:2], offload=NOTHING, is_batch=False) == 302
    assert peak(STAGES, offload=NOTHING, is_batch=False) == 100 + 200 + 50 + 40 + 4 + 300


def test_in_a_batch_the_stages_to_come_are_there_from_the_video_before() -> None:
    assert peak(STAGES, offload=NOTHING, is_batch=True) == 100 + 200 + 50 + 40 + 4 + 7 + 300
    assert peak(STAGES[:2], offload=frozenset({"prompt_upsampler"}), is_batch=False) == 302
    kept = frozenset({"denoise"})
    assert peak(STAGES[3:], offload=kept, is_batch=True) == max(4 + 7 + 110, 7 + 4 + 300)


def test_with_everything_offloaded_the_largest_stage_alone_counts() -> None:
    for is_batch in (False, True):
        assert peak(STAGES, offload=EVERYTHING, is_batch=is_batch) == 304
        assert peak(STAGES[:4], offload=EVERYTHING, is_batch=is_batch) == 202


def test_a_parked_guard_judges_the_longer_prompt_beside_the_upsampler() -> None:
    two = made(text_guard=(100, 50), upsampler=(200, 2))
    assert peak(two, offload=frozenset({"guardrails"}), is_batch=False) == 350
    assert peak(two, offload=frozenset({"guardrails", "prompt_upsampler"}), is_batch=False) == 202


def test_each_use_of_a_stage_has_the_weights_beside_it() -> None:
    two = made(text_guard=(100, 50), upsampler=(200, 2))

    def told(offload: frozenset[str]) -> list[tuple[str, tuple[str, ...], int]]:
        found = uses(two, offload=offload, is_batch=False)
        return [(use.stage.name, tuple(each.name for each in use.beside), use.num_bytes) for use in found]

    assert told(frozenset({"prompt_upsampler"})) == [
        ("text_guard", (), 150),
        ("upsampler", ("text_guard",), 302),
        ("text_guard", (), 150),
    ]
    assert told(frozenset({"guardrails"}))[2] == ("text_guard", ("upsampler",), 350)
    (first, *_) = uses(two, offload=NOTHING, is_batch=True)
    assert [each.name for each in first.beside] == ["upsampler"]


def test_every_rank_parks_network_and_tokenizer_and_the_first_of_each_replica_the_rest() -> None:
    tokenizer_and_network = frozenset({"tokenizer", "denoise"})
    for plan, host in (
        (Plan(), 4 + 40),
        (Plan(cp=4), 4 * 4 + 4 * 40),
        (Plan(cfg=2, tp=2), 4 * 4 + 4 * 40),
        (Plan(replicas=2), 2 * 4 + 2 * 40),
        (Plan(replicas=2, cfg=2, cp=2), 8 * 4 + 8 * 40),
    ):
        assert host_bytes(STAGES, tokenizer_and_network, plan=plan) == host
        assert host_bytes(STAGES, EVERYTHING, plan=plan) == plan.replicas * 357 + plan.num_ranks * 44


def test_the_host_holds_the_parked_weights_and_guardrails_are_both_guards() -> None:
    assert host_bytes(STAGES, NOTHING) == 0
    assert host_bytes(STAGES, frozenset({"guardrails"})) == 107
    assert host_bytes(STAGES, frozenset({"prompt_upsampler", "tokenizer"})) == 204
    assert host_bytes(STAGES, EVERYTHING) == 401


def test_every_name_of_the_offload_flag_parks_something() -> None:
    for name in OFFLOADABLE:
        assert host_bytes(STAGES, frozenset({name})) > 0
