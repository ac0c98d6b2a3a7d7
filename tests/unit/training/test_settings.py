from dataclasses import replace

import pytest

from cosmos_nemo.catalog import find_card
from cosmos_nemo.training.settings import TrainingError, TrainingSettings, validate

NANO, LARGE = find_card("Cosmos-Nano-Text2World"), find_card("Cosmos-1.0-Diffusion-7B-Text2World")


def test_the_defaults_are_those_of_nemos_general_post_training() -> None:
    settings = TrainingSettings()
    assert settings.learning_rate == 1e-6
    assert settings.weight_decay == 0 and settings.warmup_steps == 0
    assert settings.text_dropout == 0.2
    assert (settings.log_sigma_mean, settings.log_sigma_std, settings.high_noise_share) == (None, 1, None)
    assert settings.global_batch_size == settings.micro_batch_size == 1
    assert settings.recompute == "full" and settings.gradient_dtype == "float32"
    validate(settings, LARGE, num_ranks=1)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_steps", 0, "--max_steps 0 must be at least 1"),
        ("global_batch_size", -1, "--global_batch_size -1"),
        ("micro_batch_size", 0, "--micro_batch_size 0"),
        ("tensor_parallel", 0, "--tensor_parallel 0"),
        ("context_parallel", 0, "--cp_size 0"),
        ("average_every", 0, "--average_every 0"),
        ("learning_rate", -1e-6, "--learning_rate -1e-06 must be at least 0."),
        ("learning_rate", float("nan"), "--learning_rate nan"),
        ("learning_rate", float("inf"), "--learning_rate inf"),
        ("weight_decay", -0.1, "--weight_decay -0.1"),
        ("clip_norm", -1.0, "--clip_norm -1"),
        ("warmup_steps", -1, "--warmup_steps -1"),
        ("log_sigma_std", -1.0, "--log_sigma_std -1"),
        ("high_noise_share", 1.0, "--high_noise_share 1 must be at least 0 and below 1."),
        ("high_noise_share", -0.1, "--high_noise_share -0.1"),
        ("high_noise_share", float("nan"), "--high_noise_share nan"),
        ("text_dropout", 1.0, "--text_dropout 1 must be at least 0 and below 1."),
        ("average_decay", 1.0, "--average_decay 1 must be at least 0 and below 1."),
        ("average", "gpu", "--average gpu is unknown. Pass one of sharded, host, off."),
        ("recompute", "on", "--recompute on is unknown. Pass one of full, off."),
        ("gradient_dtype", "float16", "--gradient_dtype float16 is unknown. Pass one of float32, bfloat16."),
        ("optimizer", "adam", "--optimizer adam is unknown"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag_and_the_rule(
    field: str, value: object, says: str
) -> None:
    with pytest.raises(TrainingError) as raised:
        validate(replace(TrainingSettings(), **{field: value}), NANO, num_ranks=1)
    assert says in str(raised.value)


@pytest.mark.parametrize("field", ["log_sigma_mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_may_be_negative_must_be_finite(field: str, value: float) -> None:
    with pytest.raises(TrainingError, match=f"--{field}"):
        validate(replace(TrainingSettings(), **{field: value}), NANO, num_ranks=1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_order_of_samples_cannot_be_drawn_from_is_refused(seed: int) -> None:
    with pytest.raises(TrainingError, match="--seed"):
        validate(TrainingSettings(seed=seed), NANO, num_ranks=1)


def test_tensor_parallel_ranks_must_divide_the_heads() -> None:
    with pytest.raises(TrainingError) as raised:
        validate(TrainingSettings(tensor_parallel=3), NANO, num_ranks=3)
    assert "--tensor_parallel 3 does not divide the 8 heads" in str(raised.value)
    assert "Pass one of 1, 2, 4, 8." in str(raised.value)


def test_the_ranks_must_be_a_multiple_of_those_that_share_a_sample() -> None:
    settings = TrainingSettings(tensor_parallel=2, context_parallel=2)
    with pytest.raises(TrainingError, match=r"2 x --cp_size 2 = 4 does not divide the 6 rank\(s\)"):
        validate(settings, NANO, num_ranks=6)
    validate(replace(settings, global_batch_size=2), NANO, num_ranks=8)


@pytest.mark.parametrize(("batch", "way_out"), [(1, 6), (6, None), (7, 12), (12, None), (13, 18)])
def test_the_batch_must_be_a_multiple_of_what_the_ranks_take_at_once(batch: int, way_out: int | None) -> None:
    settings = TrainingSettings(global_batch_size=batch, micro_batch_size=3, tensor_parallel=2)
    if way_out is None:
        return validate(settings, NANO, num_ranks=4)
    with pytest.raises(TrainingError, match=rf"the 6 samples .* Pass {way_out}\."):
        validate(settings, NANO, num_ranks=4)


def test_the_learning_rate_rises_in_a_straight_line_and_then_stays() -> None:
    settings = TrainingSettings(learning_rate=0.4, warmup_steps=4)
    assert [settings.learning_rate_at(step) for step in range(1, 7)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )
    assert TrainingSettings(learning_rate=0.4).learning_rate_at(1) == 0.4


def test_data_parallel_ranks_are_what_the_others_leave() -> None:
    assert TrainingSettings(tensor_parallel=2, context_parallel=2).data_parallel(8) == 2
