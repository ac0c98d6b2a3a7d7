"""Every card has a recipe, whose values are those of the card's own door."""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiddle
import pytest

import cosmos_nemo
from cosmos_nemo.catalog import CARDS, ModelCard, Task
from cosmos_nemo.cli import (
    Invocation,
    parse_autoregressive,
    parse_general,
    parse_text2image,
    parse_video2world,
    parse_world_interpolator,
)
from cosmos_nemo.cli.invocation import Batch
from cosmos_nemo.request import OFFLOADABLE, OFFLOADABLE_OF_TOKENS, RequestError
from cosmos_nemo_recipes.generate import FIELD_NAMES, factories, generate
from cosmos_nemo_recipes.names import factory_name
from cosmos_nemo_recipes.overrides import apply_overrides, leaves, missing_fields

ALL = list(CARDS.values())


def asked_of_the_door(card: ModelCard) -> Invocation:
    if card.task is Task.TEXT2WORLD:
        return parse_general(["--model", card.name, "--prompt", "x"])
    if card.task is Task.TEXT2IMAGE:
        return parse_text2image(["--model_size", card.name.split("-")[2], "--prompt", "x"])
    parse = {
        Task.VIDEO2WORLD: parse_video2world,
        Task.WORLD_INTERPOLATOR: parse_world_interpolator,
        Task.AUTOREGRESSIVE: parse_autoregressive,
    }[card.task]
    prompt = ["--prompt", "x", "--disable_prompt_upsampler"] if card.task is not Task.AUTOREGRESSIVE else []
    return parse(["--model", card.name, "--input_image_or_video_path", "v.mp4", *prompt])


def recipe_of(card: ModelCard, *words: str) -> Any:
    """What the recipe calls `generate` with."""
    task = factories()[factory_name(card)]()
    needed = {name.rpartition(".")[2] for name in missing_fields(task)}
    values = {"prompt": "x", "visual_input": "v.mp4"}
    apply_overrides(task, [*(f"request.{name}={values[name]}" for name in needed), *words])
    return fiddle.build(task).keywords


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Invocation]:
    """What reaches the launcher."""
    import cosmos_nemo.launch

    found: list[Invocation] = []

    def serve(parse: Callable[[], Invocation], *, flag_names: Mapping[str, str]) -> int:
        found.append(parse())
        assert flag_names is FIELD_NAMES
        return int(found[-1].request.seed)

    monkeypatch.setattr(cosmos_nemo.launch, "run", serve)
    return found


def test_names_are_python_names_and_nvidias_own_where_there_are_any() -> None:
    names = [factory_name(card) for card in ALL]
    assert len(set(names)) == len(ALL)
    assert all(name.isidentifier() for name in names)
    assert list(factories()) == names
    assert {
        "cosmos_diffusion_7b_text2world",
        "cosmos_diffusion_14b_text2world",
        "cosmos_nano_text2world",
        "cosmos_predict2_2b_video2world_480p_10fps",
    } <= set(names)


@pytest.mark.parametrize("card", ALL, ids=lambda card: card.name)
def test_a_recipe_asks_for_what_the_models_door_asks(card: ModelCard, served: list[Invocation]) -> None:
    with contextlib.suppress(SystemExit):
        generate(**recipe_of(card))
    door, recipe = asked_of_the_door(card), served[0]
    assert replace(recipe.request, video_path=door.request.video_path) == door.request
    assert type(recipe.request) is type(door.request)
    assert recipe.setup == replace(door.setup, nemo_checkpoint=None, assets_dir=None)


def test_what_must_be_given_is_what_the_model_starts_from() -> None:
    needed = {
        task: missing_fields(factories()[factory_name(next(card for card in ALL if card.task is task))]())
        for task in Task
    }
    assert needed == {
        Task.TEXT2WORLD: ["request.prompt"],
        Task.TEXT2IMAGE: ["request.prompt"],
        Task.VIDEO2WORLD: ["request.prompt", "request.visual_input"],
        Task.WORLD_INTERPOLATOR: ["request.prompt", "request.visual_input"],
        Task.AUTOREGRESSIVE: ["request.visual_input"],
    }


def test_all_of_offload_is_every_stage_of_the_model(served: list[Invocation]) -> None:
    for name, stages in (
        ("Cosmos-Predict1-7B-Text2World", OFFLOADABLE),
        ("Cosmos-Predict1-4B", OFFLOADABLE_OF_TOKENS),
        ("Cosmos-Predict2-2B-Text2Image", tuple(s for s in OFFLOADABLE if s != "prompt_upsampler")),
    ):
        generate(**recipe_of(CARDS[name], "setup.offload=all", "request.seed=0"))
        assert served[-1].setup.offload == frozenset(stages)


def test_a_repository_of_several_networks_gives_the_one_for_size_and_rate(served: list[Invocation]) -> None:
    words = ("request.height=432", "request.width=768", "request.fps=10", "request.seed=0")
    generate(**recipe_of(CARDS["Cosmos-Predict2-2B-Video2World"], *words))
    assert served[0].setup.model == "Cosmos-Predict2-2B-Video2World-480p-10fps"


def test_a_batch_has_the_request_in_common(served: list[Invocation]) -> None:
    card = CARDS["Cosmos-Nano-Text2World"]
    words = ("batch_input_path=p.jsonl", "video_save_folder=here", "setup.replicas=2", "request.seed=0")
    generate(**recipe_of(card, *words))
    assert served[0].batch == Batch(path=Path("p.jsonl"), folder=Path("here"))


def test_replicas_without_a_batch_are_refused(served: list[Invocation]) -> None:
    with pytest.raises(RequestError, match="--replicas shares the videos of a batch"):
        generate(**recipe_of(CARDS["Cosmos-Nano-Text2World"], "setup.replicas=2"))
    assert served == []


def test_a_failure_is_the_doors_exit_status(served: list[Invocation]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate(**recipe_of(CARDS["Cosmos-Nano-Text2World"], "request.seed=3"))
    assert ended.value.code == 3
    assert generate(**recipe_of(CARDS["Cosmos-Nano-Text2World"], "request.seed=0")) is None


def test_errors_speak_of_fields_that_exist() -> None:
    known = {"--dryrun"}
    for factory in factories().values():
        known |= set(leaves(factory()))
    assert {name.partition("=")[0] for name in FIELD_NAMES.values()} <= known


def test_every_flag_that_an_error_names_has_a_field() -> None:
    """Of the files whose errors reach a recipe's user."""
    root = Path(cosmos_nemo.__file__).parent
    sources = [root / "request.py", root / "plan.py", *root.glob("job/*.py"), *root.glob("stages/*.py")]
    named = {flag for path in sources for flag in re.findall(r"--[a-z][a-z0-9_]+", path.read_text())}
    of_other_doors = {"--nproc_per_node", "--video_save_name", "--num_gpus", "--checkpoint_dir"}
    assert named - of_other_doors <= set(FIELD_NAMES)


def test_an_error_is_told_in_the_recipes_names(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate(**recipe_of(CARDS["Cosmos-Nano-Text2World"], "request.num_frames=20"))
    assert ended.value.code == 2
    assert "RequestError: request.num_frames 20 does not fit" in capfd.readouterr().err
