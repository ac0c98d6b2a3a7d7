"""The recipe of post-training stands for flags of `cosmos-nemo post-train`, one field for each."""

import argparse
from typing import Any

import fiddle
import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.request import RequestError
from cosmos_nemo.tools import post_train as tool
from cosmos_nemo.training.prepare import check_is_trainable
from cosmos_nemo_recipes.names import factory_name
from cosmos_nemo_recipes.overrides import apply_overrides, leaves, missing_fields
from cosmos_nemo_recipes.post_train import FIELD_NAMES, factories, post_train, words_of

NAME = "cosmos_diffusion_7b_text2world_finetune"


def flags_of_the_tool() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return parser


def recipe(*words: str, name: str = NAME) -> dict[str, Any]:
    task = factories()[name]()
    apply_overrides(task, ["data.path=data", *words])
    return fiddle.build(task).keywords


def test_there_is_a_recipe_for_every_model_that_can_be_trained() -> None:
    trainable = set()
    for card in CARDS.values():
        try:
            check_is_trainable(card)
        except RequestError:
            continue
        trainable.add(f"{factory_name(card)}_finetune")
    assert set(factories()) == trainable


def test_every_flag_of_the_tool_has_a_field_and_every_field_a_flag() -> None:
    flags = {action.option_strings[0] for action in flags_of_the_tool()._actions if action.option_strings}
    assert set(FIELD_NAMES) == flags - {"-h", "--dry_run"}
    assert set(FIELD_NAMES.values()) == set(leaves(factories()[NAME]())) - {"dry_run"}


def test_the_defaults_are_the_tools_but_for_the_folder() -> None:
    ours = flags_of_the_tool().parse_args(list(words_of(recipe())))
    theirs = flags_of_the_tool().parse_args(["--data_path", "data"])
    differing = {name for name in vars(theirs) if getattr(ours, name) != getattr(theirs, name)}
    assert differing == {"log_dir"}
    assert str(ours.log_dir) == f"nemo_experiments/{NAME}"
    assert missing_fields(factories()[NAME]()) == ["data.path"]


def test_the_overrides_of_nemos_own_document_mean_what_they_meant() -> None:
    words = (
        "trainer.max_steps=7",
        "optim.config.lr=1e-5",
        "resume.restore_config.path=ckpt",
        "log.log_dir=logs",
        "trainer.strategy.tensor_model_parallel_size=8",
        "resume.resume_if_exists=true",
    )
    flags = flags_of_the_tool().parse_args(list(words_of(recipe(*words))))
    assert (flags.max_steps, flags.learning_rate, flags.tensor_parallel) == (7, 1e-5, 8)
    assert (str(flags.nemo_checkpoint), str(flags.log_dir), flags.resume) == ("ckpt", "logs", True)


def test_an_error_is_told_in_the_recipes_names(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        post_train(**recipe("optim.config.lr=-1e-6", "resume.from_scratch=true"), dry_run=True)
    assert ended.value.code == 2
    assert "optim.config.lr -1e-06" in capfd.readouterr().err
