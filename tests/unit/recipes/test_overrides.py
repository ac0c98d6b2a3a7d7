"""Words of the command line as fields of a configuration."""

from pathlib import Path

import fiddle
import nemo_run as run
import pytest

from cosmos_nemo.request import Setup, Text2WorldRequest
from cosmos_nemo_recipes.generate import generate
from cosmos_nemo_recipes.overrides import (
    RecipeError,
    apply_overrides,
    leaves,
    make_serializable,
    missing_fields,
    place_paths,
)


def task() -> run.Partial:
    return run.Partial(
        generate,
        setup=run.Config(Setup, model="Cosmos-Nano-Text2World"),
        request=run.Config(Text2WorldRequest),
    )


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("request.prompt=A = 1.5 m; os.getcwd, [1, 2] 'x'", "A = 1.5 m; os.getcwd, [1, 2] 'x'"),
        ("request.prompt=os.getcwd", "os.getcwd"),
        ("request.prompt=12", "12"),
        ("request.prompt=two\nlines", "two\nlines"),
        ("request.prompt=", ""),
        ("request.seed=0", 0),
        ("request.guidance=7", 7.0),
        ("request.guidance=-1e0", -1.0),
        ("setup.guardrails=false", False),
        ("setup.upsamples=True", True),
        ("setup.cp_size=2", 2),
        ("setup.cp_size=None", None),
        ("setup.nemo_checkpoint=runs/epoch=39-step=199/weights", Path("runs/epoch=39-step=199/weights")),
        ("setup.nemo_checkpoint=none", None),
        ("setup.offload=all", frozenset({"all"})),
        ("setup.offload=denoise,tokenizer", frozenset({"denoise", "tokenizer"})),
        ("setup.offload=['denoise', 'tokenizer']", frozenset({"denoise", "tokenizer"})),
        ("setup.offload=[]", frozenset()),
        ("batch_input_path=a.jsonl", Path("a.jsonl")),
        ("dry_run=true", True),
    ],
)  # fmt: skip
def test_a_value_is_read_by_the_type_of_its_field(word: str, value: object) -> None:
    config = task()
    apply_overrides(config, [word])
    found = leaves(config)[word.partition("=")[0]]
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("request.promt=x", "request.promt does not exist. Did you mean request.prompt"),
        ("setup.seed=1", "setup.seed does not exist. Did you mean request.seed?"),
        ("prompt=x", "prompt does not exist. Did you mean request.prompt?"),
        ("reqest.prompt=x", "reqest.prompt does not exist. Did you mean request.prompt?"),
        ("zzz=1", "zzz does not exist. There are setup, request, batch_input_path"),
        ("request.prompt.text=x", "request.prompt.text does not exist: request.prompt has no fields."),
        ("request=x", "request has fields of its own: request.prompt, "),
        ("request.seed=three", "request.seed=three is not a whole number."),
        ("request.guidance=much", "request.guidance=much is not a number."),
        ("setup.guardrails=maybe", "setup.guardrails=maybe is not true or false."),
        ("setup.cp_size=1.5", "setup.cp_size=1.5 is not a whole number."),
        ("request.prompt", "'request.prompt' is no override. Write FIELD=VALUE"),
        ("request.seed+=1", "request.seed+ does not exist. Did you mean request.seed?"),
    ],
)
def test_a_word_that_cannot_be_meant_is_told_with_what_is_near(word: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as raised:
        apply_overrides(task(), [word])
    assert sentence in str(raised.value)


def test_fields_without_value_or_default_are_missing() -> None:
    config = task()
    assert missing_fields(config) == ["request.prompt"]
    apply_overrides(config, ["request.prompt=x"])
    assert missing_fields(config) == []


def test_fields_whose_default_is_made_anew_are_not_missing() -> None:
    assert missing_fields(run.Config(run.SlurmExecutor), "executor.") == ["executor.account"]


def test_relative_paths_begin_in_the_folder_of_the_caller_and_others_stay() -> None:
    config = task()
    apply_overrides(config, ["request.video_path=a/b.mp4", "setup.tokenizer_dir=/models/t"])
    place_paths(config, Path("/here"))
    assert config.request.video_path == Path("/here/a/b.mp4")
    assert config.setup.tokenizer_dir == Path("/models/t")


def test_a_home_folder_is_found_where_no_shell_has_done_it() -> None:
    config = task()
    apply_overrides(config, ["request.video_path=~/a.mp4"])
    place_paths(config, Path("/here"))
    assert config.request.video_path == Path.home() / "a.mp4"


def test_a_relative_path_is_refused_for_a_job_that_does_not_see_this_folder() -> None:
    config = task()
    apply_overrides(config, ["request.video_path=a.mp4"])
    with pytest.raises(RecipeError, match=r"^request.video_path=a.mp4 is relative"):
        place_paths(config, None)


def test_a_configuration_survives_the_way_to_a_job() -> None:
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    config = task()
    apply_overrides(config, ["request.prompt=x", "setup.offload=denoise", "request.video_path=/a.mp4"])
    there = ZlibJSONSerializer()
    make_serializable(config)
    received = fiddle.build(there.deserialize(there.serialize(config)))
    assert received.keywords["setup"].offload == frozenset({"denoise"})
    assert received.keywords["request"] == Text2WorldRequest(prompt="x", video_path=Path("/a.mp4"))
