"""How much of everything the nano models are made from."""

from dataclasses import dataclass, replace

from cosmos_nemo.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much of everything."""

    tokenizer_steps: int
    tokenizer_batch: int
    wan_tokenizer_steps: int
    wan_tokenizer_batch: int
    discrete_tokenizer_steps: int
    discrete_tokenizer_batch: int
    text_steps: int
    text_batch: int
    statistics_clips: int
    """Clips whose latents' mean and deviation the tokenizer is given."""
    num_clips: int
    """Clips that a network is trained on; likewise the next, of Predict2."""
    predict2_clips: int
    token_clips: int
    """Whose tokens the autoregressive network is trained on."""
    base: TrainingSettings
    subject: TrainingSettings
    video2world: TrainingSettings
    interpolator: TrainingSettings
    predict2: TrainingSettings
    autoregressive: TrainingSettings
    save_every: int


_BASE = TrainingSettings(
    num_steps=10000,
    global_batch_size=256,
    micro_batch_size=256,
    learning_rate=1e-3,
    warmup_steps=500,
    weight_decay=0.01,
    adam_betas=(0.9, 0.99),
    text_dropout=0.1,
    log_sigma_mean=0.7,
    log_sigma_std=1.5,
    average_decay=0.9995,
    recompute="off",
)
RECIPE = Recipe(
    tokenizer_steps=6000,
    tokenizer_batch=16,
    wan_tokenizer_steps=4000,
    wan_tokenizer_batch=4,
    discrete_tokenizer_steps=6000,
    discrete_tokenizer_batch=16,
    text_steps=2000,
    text_batch=64,
    statistics_clips=1024,
    num_clips=32768,
    predict2_clips=16384,
    token_clips=65536,
    base=_BASE,
    subject=TrainingSettings(
        num_steps=600,
        global_batch_size=36,
        micro_batch_size=36,
        learning_rate=2e-4,
        warmup_steps=50,
        adam_betas=(0.9, 0.99),
        log_sigma_mean=0.7,
        log_sigma_std=1.5,
        average_decay=0.99,
        recompute="off",
    ),
    video2world=replace(_BASE, num_steps=5000, learning_rate=5e-4, warmup_steps=250),
    interpolator=replace(_BASE, num_steps=7000, learning_rate=5e-4, warmup_steps=250, text_dropout=0.25),
    # Twice the latent frames, and latents of twice the deviation that the others' are scaled to.
    predict2=replace(_BASE, num_steps=6000, global_batch_size=128, micro_batch_size=128, log_sigma_mean=1.4),
    # The warm-up is a part of the steps, as for the tokenizers.
    autoregressive=TrainingSettings(
        num_steps=4500,
        global_batch_size=128,
        micro_batch_size=128,
        learning_rate=1.5e-3,
        weight_decay=0.05,
        adam_betas=(0.9, 0.98),
        average_decay=0.998,
        recompute="off",
    ),
    save_every=2500,
)
"""The shipped files, and those of the autoregressive model, not shipped yet: minutes each on one H200."""


def fraction_of(recipe: Recipe, fraction: float) -> Recipe:
    """The recipe with this part of its steps, clips and batches, each at least one; to try it out."""

    def part(count: int, least: int = 1) -> int:
        return max(round(count * fraction), least)

    def shorter(settings: TrainingSettings) -> TrainingSettings:
        batch = part(settings.global_batch_size)
        steps = part(settings.num_steps)
        return replace(settings, num_steps=steps, global_batch_size=batch, micro_batch_size=batch)

    if fraction == 1:
        return recipe
    return Recipe(
        tokenizer_steps=part(recipe.tokenizer_steps),
        tokenizer_batch=part(recipe.tokenizer_batch),
        wan_tokenizer_steps=part(recipe.wan_tokenizer_steps),
        wan_tokenizer_batch=part(recipe.wan_tokenizer_batch),
        discrete_tokenizer_steps=part(recipe.discrete_tokenizer_steps),
        discrete_tokenizer_batch=part(recipe.discrete_tokenizer_batch),
        text_steps=part(recipe.text_steps),
        text_batch=part(recipe.text_batch),
        statistics_clips=part(recipe.statistics_clips),
        num_clips=part(recipe.num_clips),
        predict2_clips=part(recipe.predict2_clips),
        token_clips=part(recipe.token_clips),
        base=shorter(recipe.base),
        subject=shorter(recipe.subject),
        video2world=shorter(recipe.video2world),
        interpolator=shorter(recipe.interpolator),
        predict2=shorter(recipe.predict2),
        autoregressive=shorter(recipe.autoregressive),
        save_every=recipe.save_every,
    )
