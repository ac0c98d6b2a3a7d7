"""README and pages: their commands are understood, their flags, links and tables are true."""

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.cli import (
    Invocation,
    autoregressive,
    general,
    parse_autoregressive,
    parse_general,
    parse_text2image,
    parse_text2world,
    parse_video2world,
    parse_world_interpolator,
    text2image,
    text2world,
    video2world,
    world_interpolator,
)
from cosmos_nemo.cli.predict1 import FLAG_NAMES
from cosmos_nemo.memory import GIB, host_bytes, published_rows, stage_memory
from cosmos_nemo.request import validate_setup
from cosmos_nemo.tools.main import COMMANDS as TOOLS
from cosmos_nemo.tools.standin import write_standin
from tests.doors.commands import SeedCommand, commands_of
from tests.test_layering import ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
WITH_CHANGELOG = [*PAGES, "CHANGELOG.md"]

_ASSIGNMENT = re.compile(r"([A-Z_][A-Z0-9_]*)=(.*)", re.DOTALL)
_OF_OTHERS = {"source", "docker", "make", ".ci/run"}
"""Programs that the pages name and that are not this project's."""
_FOREIGN_FLAGS = {"--nproc_per_node", "--no-deps", "--build-arg", "--help"}
_FOREIGN_FLAGS |= {"--factory", "--yes", "--dryrun", "--detach", "--load", "--repl"}  # nemo_run's
_FOREIGN_FLAGS |= {"--yaml", "--to-yaml", "--to-json", "--to-toml"}
_NOT_BUILT = {"--distill_steps", "--use_fast_tokenizer", "--benchmark"}
"""Flags of released scripts that a page names as what is missing."""


def _script_of(word: str) -> str:
    """The script that a word of a command names, be it as a module; "" if it names none."""
    if word == "cosmos_nemo.tools.main":
        return "cosmos-nemo"
    is_module = re.fullmatch(r"inference\.\w+", word) and not word.endswith(".py")
    return f"{word.replace('.', '/')}.py" if is_module else word if word.endswith(".py") else ""


@dataclass(frozen=True)
class Command:
    """One command of a page; `variables`: what the page has set before it."""

    page: str
    words: tuple[str, ...]

    @property
    def script(self) -> str:
        """The project's script, `cosmos-nemo`, or the program itself where it is none of the project's."""
        return next(filter(None, map(_script_of, self.words)), self.words[0])

    @property
    def argv(self) -> list[str]:
        start = next((i for i, word in enumerate(self.words) if _script_of(word)), 0)
        return list(self.words[start + 1 :])

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:70]}"


def commands_in(page: str, text: str) -> Iterator[Command]:
    """The commands of a page's bash blocks, with the variables that stand before them put in."""
    variables: dict[str, str] = {}
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").split("\n"):
            words = [Template(word).safe_substitute(variables) for word in shlex.split(line, comments=True)]
            words = words[1:] if words[:1] == ["export"] else words
            while words and (assigned := _ASSIGNMENT.fullmatch(words[0])):
                variables[assigned[1]] = assigned[2]
                words = words[1:]
            if words:
                yield Command(page, tuple(words))


def code_spans(text: str) -> list[str]:
    """What stands between single backticks outside blocks, each in one line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def inline_commands(page: str) -> Iterator[Command]:
    """Commands with arguments in the running text, `cosmos-nemo inspect CKPT` for one."""
    for span in code_spans(read(page)):
        words = shlex.split(span) if "'" not in span else []
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if len(words) > (2 if words[:1] == ["cosmos-nemo"] else 1) and words[0] in (
            "cosmos-nemo",
            "python",
            "torchrun",
        ):
            yield Command(page, tuple(words))


EVERY = [command for page in PAGES for command in (*commands_in(page, read(page)), *inline_commands(page))]
OURS = [command for command in EVERY if command.script not in _OF_OTHERS]
_WITH_STAND_INS = ("base", "text2image", "text2world", "video2world", "world_interpolator")
OF_PREDICT1 = [
    command for command in OURS if command.script in (f"inference/{name}.py" for name in _WITH_STAND_INS)
]


def _parser_of_script(script: str) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = module._parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def _parser_of_tool(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cosmos-nemo {name}")
    importlib.import_module(f"cosmos_nemo.tools.{name.replace('-', '_')}").add_arguments(parser)
    return parser


DOORS: Mapping[str, Callable[[list[str]], Invocation]] = {
    "inference/general.py": parse_general,
    "inference/base.py": parse_autoregressive,
    "inference/text2image.py": parse_text2image,
    "inference/text2world.py": parse_text2world,
    "inference/video2world.py": parse_video2world,
    "inference/world_interpolator.py": parse_world_interpolator,
}


def understand(command: Command) -> object:
    """What the command's own parser makes of it; SystemExit or an error if it is wrong."""
    if command.script in DOORS:
        invocation = DOORS[command.script](command.argv)
        validate_setup(invocation.setup)
        return invocation
    if command.script == "cosmos-nemo":
        tool, *argv = command.argv
        assert tool in TOOLS, f"cosmos-nemo has no {tool}"
        return _parser_of_tool(tool).parse_args(argv)
    if command.script.startswith("download/"):
        return _parser_of_script(command.script).parse_args(command.argv)
    if command.script == "nemo":
        return _recipe(command.argv)
    raise AssertionError(f"nobody knows what {command.script} is")


def _recipe(argv: list[str]) -> object:
    """The task of a `nemo cosmos` command whose fields all exist, and have values where they need them."""
    from cosmos_nemo_recipes import generate, post_train
    from cosmos_nemo_recipes.context import CosmosContext
    from cosmos_nemo_recipes.overrides import apply_overrides, missing_fields, place_paths

    namespace, name, *words = argv
    assert namespace in ("cosmos", "run"), f"nemo has no {namespace} of ours"
    recipes = {"generate": generate.factories(), "post_train": post_train.factories()}[name]
    options = argparse.ArgumentParser(allow_abbrev=False)
    options.add_argument("--factory", choices=recipes, required=True)
    for flag in ("--yes", "--dryrun", "--detach"):
        options.add_argument(flag, action="store_true")
    flags, fields = options.parse_known_args(words)
    task = recipes[flags.factory]()
    apply_overrides(task, [word for word in fields if not word.startswith("executor")])
    if name == "generate":
        generate.complete(task, given={word.partition("=")[0] for word in fields})
    assert missing_fields(task) == []
    if executor := [word for word in fields if word.startswith("executor")]:
        own = [word.removeprefix("executor.") for word in executor[1:]]
        config = CosmosContext(name=name).parse_executor(executor[0].removeprefix("executor="), *own)
        if getattr(config, "container_image", None) is not None:
            place_paths(task, None)
    return task


@pytest.mark.parametrize("command", OURS, ids=str)
def test_every_command_is_understood(command: Command) -> None:
    assert understand(command) is not None


def test_the_commands_are_found_at_all() -> None:
    found = {command.script for command in OURS}
    assert {
        *DOORS,
        "cosmos-nemo",
        "download/autoregressive.py",
        "download/diffusion.py",
        "download/nemo.py",
    } <= found
    shown = [command.script for command in OF_PREDICT1 if command.page == "README.md"]
    assert {script: shown.count(script) for script in shown} == {
        "inference/text2world.py": 4,
        "inference/video2world.py": 3,
        "inference/world_interpolator.py": 1,
        "inference/base.py": 1,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "python inference/text2world.py --prompt x --num_devices 8",
        "python inference/general.py --prompt x --offload everything",
        "python download/diffusion.py --model_size 7B",
        "nemo cosmos generate --factory cosmos_9b --yes request.prompt=x",
        "nemo cosmos generate --factory cosmos_nano_text2world --yes request.promt=x",
        "nemo cosmos generate --factory cosmos_nano_text2world --yes",
        "nemo run generate --factory cosmos_nano_text2world request.prompt=x executor=torchrun executor.x=1",
        "cosmos-nemo convert A B --to zarr",
        "cosmos-nemo physician",
        "python inference/video2world.py --prompt x",
        "python inference/video2world.py --input_image_or_video_path a.mp4 --num_frame_pairs 2",
        "python3 -m inference.world_interpolator --input_image_or_video_path a.mp4 --keep_input_size",
        "python3 -m inference.world_extrapolator --input_image_or_video_path a.mp4",
        "python inference/general.py --model Cosmos-1.0-Diffusion-7B-Video2World --prompt x",
        "rm -rf checkpoints",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    (command,) = commands_in("page", f"```bash\n{wrong}\n```\n")
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        understand(command)


def _seed(number: str, title: str) -> SeedCommand:
    (found,) = [command for command in commands_of(number) if command.title.startswith(title)]
    return found


def _section(title: str) -> list[Command]:
    """The commands below one heading of the README."""
    text = read("README.md").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return list(commands_in("README.md", text))


def _without_prompt(argv: tuple[str, ...] | list[str]) -> list[str]:
    words = list(argv)
    if "--prompt" in words:
        words[words.index("--prompt") + 1] = "PROMPT"
    return words


def test_the_readme_has_the_commands_of_the_text2world_document() -> None:
    documented = [
        _seed("000", title) for title in ("download", "example 1", "example 2", "example 3", "example 4")
    ]
    shown = [
        command
        for command in _section("Text2World of Predict1")
        if command.script in ("download/diffusion.py", "inference/text2world.py")
    ]
    assert [_without_prompt(command.argv) for command in shown] == [
        _without_prompt(command.argv) for command in documented
    ]
    assert [command.words[: len(seed.launcher)] for command, seed in zip(shown, documented, strict=True)] == [
        seed.launcher for seed in documented
    ]


def test_the_readmes_commands_for_nemo_ask_for_what_the_nemo_document_asks() -> None:
    sections = (*_section("From a NeMo checkpoint"), *_section("Post-trained checkpoints"))
    shown = [c.argv for c in sections if c.script == "inference/general.py"]
    assert len(shown) == 2
    for argv, title in zip(shown, ("base model", "post-trained model"), strict=True):
        theirs, ours = (parse_general(each) for each in (_seed("004", title).argv, argv))
        assert ours.setup.upsamples is theirs.setup.upsamples is True
        for field in ("guidance", "seed", "subject_name", "video_path", "sampler"):
            assert getattr(ours.request, field) == getattr(theirs.request, field)


def test_the_readme_has_the_commands_of_the_interpolators_document() -> None:
    [download] = [c for c in _section("Video2World of Predict1") if c.script.startswith("download/")]
    assert tuple(download.argv) == _seed("002", "download").argv
    [shown] = _section("WorldInterpolator")
    theirs = _seed("002", "example 1")
    module = theirs.script.replace("cosmos_predict1.diffusion.", "")
    assert shown.words == (*theirs.launcher, module, *theirs.argv)


def test_the_readme_has_the_command_of_the_autoregressive_document() -> None:
    [shown] = [c for c in _section("Autoregressive") if c.script == "inference/base.py"]
    assert tuple(shown.argv) == _seed("001", "example 1").argv


def test_the_readme_has_a_row_for_every_inference_script() -> None:
    rows = read("README.md").partition("\n## What it runs\n")[2].partition("\n## ")[0]
    assert {script for script in DOORS if f"`{script}`" not in rows} == set()


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "checkpoints"
    names = ("1-7B-Text2World", "1-14B-Text2World", "1-7B-Video2World", "1-7B-WorldInterpolator")
    cards = [
        CARDS[f"Cosmos-Predict{name}"] for name in (*names, "1-4B", "2-2B-Video2World", "2-2B-Text2Image")
    ]
    write_standin(cards, folder, seed=0, layout="folder")
    (folder / f"{cards[0].name}_post-trained").symlink_to(folder / cards[0].name)
    return folder


@pytest.mark.parametrize("command", OF_PREDICT1, ids=str)
def test_every_command_of_predict1_passes_a_dry_run_with_stand_ins(
    command: Command,
    stand_ins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from cosmos_nemo.launch import run

    for name in ("checkpoints", "stand-ins", "stand-ins-2", "stand-ins-3"):
        (tmp_path / name).symlink_to(stand_ins)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "output").mkdir()
    for name in ("output/robot.jpg", "frame.png"):
        (tmp_path / name).symlink_to(ROOT / "assets/video2world/input0.jpg")
    (tmp_path / "up.mp4").symlink_to(ROOT / "assets/autoregressive/input.mp4")
    monkeypatch.chdir(tmp_path)
    argv = [*command.argv, *(["--dry_run"] if "--dry_run" not in command.argv else [])]
    status = run(lambda: DOORS[command.script](argv), environ={"COSMOS_NEMO_CACHE": ""})
    printed = capfd.readouterr()
    assert status == 0, printed.err
    assert "not here" not in printed.out


_FIRST = "--input_image_or_video_path assets/diffusion/video2world_input0.jpg"
_BIG = "Cosmos-1.0-Diffusion-7B-Text2World"
_NANO = "cosmos_nemo/assets/Cosmos-Nano-Text2World/nemo"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("text2world --checkpoint_dir nowhere --prompt x --dry_run", 2),
        ("text2world --diffusion_transformer_dir Cosmos-Predict1-7B-Text2Wrld --prompt x --dry_run", 2),
        ("text2world --prompt x --num_video_frames 120 --dry_run", 2),
        ("text2world --prompt x --num_gpus 8", 2),
        ("text2world --prompt grobnik --disable_prompt_upsampler", 3),
        ("text2world --prompt zorchblade --disable_prompt_upsampler", 3),
        (f"video2world {_FIRST} --num_input_frames 9 --dry_run", 2),
        ("video2world --input_image_or_video_path cut.mp4 --dry_run", 2),
        ("general --model Cosmos-Nano-Text2World --prompt x --cp_size 8 --num_devices 4 --dry_run", 2),
        (f"general --model {_BIG} --nemo_checkpoint {_NANO} --prompt x --dry_run", 2),
        ("general --model Cosmos-Nano-Text2World --nemo_checkpoint without --prompt x --dry_run", 2),
    ],
)
def test_the_sentence_on_the_page_is_the_one_that_is_said(
    command: str,
    status: int,
    stand_ins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from cosmos_nemo.launch import run

    (tmp_path / "checkpoints").symlink_to(stand_ins)
    for name in ("assets", "cosmos_nemo"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "cut.mp4").write_bytes((ROOT / "assets/diffusion/video2world_input0.mp4").read_bytes()[:2000])
    (tmp_path / "without/weights").mkdir(parents=True)
    (tmp_path / "without/weights/__0_0.distcp").touch()
    monkeypatch.chdir(tmp_path)
    door, *argv = command.split()
    names = {} if door == "general" else FLAG_NAMES
    parse = DOORS[f"inference/{door}.py"]
    got = run(lambda: parse(argv), flag_names=names, environ={"COSMOS_NEMO_CACHE": ""})
    printed = capfd.readouterr()
    assert got == status, printed.err
    lines = [" ".join(line.split()) for line in (printed.out + printed.err).splitlines()]
    assert any(re.fullmatch(quoted, line) for quoted in _quoted_sentences() for line in lines), lines


def _quoted_sentences() -> list[str]:
    """What the page on troubleshooting quotes, as patterns: "..." stands for anything."""
    blocks = re.findall(r"^```text\n(.*?)^```", read("docs/troubleshooting.md"), re.DOTALL | re.MULTILINE)
    starts = r"\s+(?=[A-Z]\w+Error: |outputs/|--\w+ is not|\d+ videos made)"
    sentences = [sentence for block in blocks for sentence in re.split(starts, block)]
    return [re.escape(" ".join(each.split())).replace(r"\.\.\.", ".*") for each in sentences]


def _known_flags() -> set[str]:
    doors = (autoregressive, general, text2image, text2world, video2world, world_interpolator)
    parsers = [door._parser() for door in doors]
    parsers += [_parser_of_script(f"download/{name}.py") for name in ("autoregressive", "diffusion", "nemo")]
    parsers += [_parser_of_tool(name) for name in TOOLS]
    return {flag for parser in parsers for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("page", WITH_CHANGELOG)
def test_every_flag_that_is_named_exists(page: str) -> None:
    known = _known_flags() | _FOREIGN_FLAGS
    if "## Not built yet" in read(page):
        known |= _NOT_BUILT
    spans = " ".join(span for span in code_spans(read(page)) if not span.startswith(("pip", "docker")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", spans))
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    assert {flag for flag in named - known if f'"{flag}"' not in benchmarks} == set()


@pytest.mark.parametrize("page", WITH_CHANGELOG)
def test_every_command_of_cosmos_nemo_that_is_named_exists(page: str) -> None:
    named = {span.split()[1] for span in code_spans(read(page)) if re.match(r"cosmos-nemo \w", span)}
    assert named - set(TOOLS) == set()


def _anchors(page: str) -> set[str]:
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", WITH_CHANGELOG)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in _anchors(there.resolve().relative_to(ROOT).as_posix()), target


def test_every_page_is_listed() -> None:
    index = read("docs/README.md")
    assert [page for page in PAGES if page.startswith("docs/") and f"({Path(page).name})" not in index] == [
        "docs/README.md"
    ]


def test_the_readme_names_every_model() -> None:
    table = read("README.md").partition("## Models")[2]
    short = {name for name in CARDS if f"`{name}`" not in table}
    endings = {re.split(r"_post-trained|(?=-\d+p-)", name, maxsplit=1)[1] for name in short}
    assert endings <= set(re.findall(r"`(-[\w-]+)`", table))


def _figures(page: str, row: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", read(page), re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_table_of_predicted_peaks_is_what_the_code_predicts() -> None:
    small, large = (CARDS[f"Cosmos-Predict1-{size}-Text2World"] for size in ("7B", "14B"))
    rows = ("prompt upsampler", "+ guardrails", "+ text encoder", "+ tokenizer", "+ network")
    for number, row in enumerate(rows):
        expected = []
        for card in (small, large):
            for is_batch in (False, True):
                expected.append(published_rows(card, is_batch=is_batch)[number][1])
        offload = published_rows(small)[number][0]
        expected += [host_bytes(stage_memory(card), offload) for card in (small, large)]
        assert _figures("docs/memory.md", row) == [f"{value / GIB:.1f}" for value in expected]


def test_the_table_of_predicted_peaks_with_given_frames_is_what_the_code_predicts() -> None:
    names = ("7B-Video2World", "14B-Video2World", "7B-WorldInterpolator")
    small, large, between = cards = [CARDS[f"Cosmos-Predict1-{name}"] for name in names]
    rows = ("image upsampler", "image upsampler, guardrails", "these and text encoder")
    for number, row in enumerate((*rows, "these and tokenizer", "these and network")):
        expected = [
            published_rows(card, is_batch=is_batch)[number][1] for card in cards for is_batch in (False, True)
        ]
        offload = published_rows(small)[number][0]
        hosts = {card.name: host_bytes(stage_memory(card), offload) for card in cards}
        assert hosts[small.name] == hosts[between.name]
        expected += [hosts[small.name], hosts[large.name]]
        assert _figures("docs/memory.md", row) == [f"{value / GIB:.1f}" for value in expected]


def test_the_table_of_predicted_peaks_of_predict2_is_what_the_code_predicts() -> None:
    small, large = (CARDS[f"Cosmos-Predict2-{size}-Video2World"] for size in ("2B", "14B"))
    rows = ("prompt refiner", "refiner and guardrails", "these and T5")
    for number, row in enumerate((*rows, "these and Wan2.1's tokenizer", "these and Predict2's network")):
        expected = [
            published_rows(card, is_batch=is_batch)[number][1]
            for card in (small, large)
            for is_batch in (False, True)
        ]
        offload = published_rows(small)[number][0]
        expected += [host_bytes(stage_memory(card), offload) for card in (small, large)]
        assert _figures("docs/memory.md", row) == [f"{value / GIB:.1f}" for value in expected]


def test_the_weights_in_the_table_of_offloading_flags_are_those_of_the_code() -> None:
    small, large = (
        {
            stage.name: f"{stage.weights / GIB:.1f}"
            for stage in stage_memory(CARDS[f"Cosmos-Predict1-{size}-Text2World"])
        }
        for size in ("7B", "14B")
    )
    expected = {
        "`--offload_prompt_upsampler`": small["upsampler"],
        "`--offload_guardrail_models`": f"{small['text_guard']} + {small['video_guard']}",
        "`--offload_text_encoder_model`": small["text_encoder"],
        "`--offload_diffusion_transformer`": f"{small['denoise']} (7B), {large['denoise']} (14B)",
        "`--offload_tokenizer`": small["tokenizer"],
    }
    assert {flag: _figures("docs/memory.md", flag)[-1] for flag in expected} == expected
