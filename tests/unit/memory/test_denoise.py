import pytest

from cosmos_nemo.memory import GIB, peak, predict, stage_memory
from cosmos_nemo.plan import Plan
from tests.unit.memory.cards import BETWEEN, NOTHING, SMALL, VIDEO, stage


@pytest.mark.parametrize(("plan", "measured"), [(Plan(cp=2), 27.2), (Plan(cfg=2), 29.1)])
def test_the_peaks_measured_on_two_gpus_are_predicted(plan: Plan, measured: float) -> None:
    stages = stage_memory(SMALL, plan=plan, guardrails=False, upsamples=False)
    assert peak(stages[:2], offload=NOTHING, is_batch=False) / GIB == pytest.approx(measured, rel=0.01)


def test_ranks_share_a_videos_tokens_and_the_layers_matrices() -> None:
    one = stage(SMALL, "denoise")
    context, tensor, halves = (
        stage(SMALL, "denoise", plan=plan) for plan in (Plan(cp=4), Plan(tp=4), Plan(cfg=2))
    )
    assert context.weights == halves.weights == one.weights > tensor.weights > one.weights // 4
    assert one.work / 4 < context.work < one.work / 2
    assert one.work / 4 < tensor.work < one.work
    text = one.work - halves.work
    assert text == 28 * 2 * 512 * 4096 * 2
    assert stage(SMALL, "denoise", num_branches=1).work == halves.work
    assert stage(SMALL, "denoise", num_branches=1, plan=Plan(cfg=1)).work == halves.work


def test_a_video_in_chunks_needs_the_memory_of_one_chunk() -> None:
    assert stage_memory(VIDEO, num_frames=601) == stage_memory(VIDEO, num_frames=121) == stage_memory(VIDEO)
    assert stage(VIDEO, "denoise", num_frames=57).work < stage(VIDEO, "denoise").work


def test_an_interpolators_clips_have_three_latent_frames_and_one_branch() -> None:
    one, branches = stage(BETWEEN, "denoise"), stage(BETWEEN, "denoise", num_branches=2)
    text = 28 * 2 * 512 * 4096 * 2
    assert branches.work - one.work == text
    alike = stage(VIDEO, "denoise", num_frames=17, num_branches=1)
    assert (alike.weights, alike.work) == (one.weights, one.work)
    assert predict(BETWEEN).peak < predict(VIDEO).peak
