"""The list of the documents' commands is well-formed, and the input files they name are there."""

import json
import re

import pytest

from tests.doors.commands import COMMANDS, SeedCommand, commands_of
from tests.test_layering import ROOT

EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def words(command: SeedCommand) -> list[str]:
    return [*command.launcher, command.script, *command.argv]


def test_the_five_documents_are_there() -> None:
    assert [len(commands_of(f"00{number}")) for number in range(5)] == [6, 5, 3, 9, 3]
    assert len(COMMANDS) == 26


def test_every_command_has_its_own_name() -> None:
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


@EVERY
def test_nothing_is_left_for_a_shell_to_fill_in(command: SeedCommand) -> None:
    assert [word for word in words(command) if re.search(r"[$\\`]|^\s|\s$|  ", word) or not word] == []


@EVERY
def test_a_command_starts_with_flags_and_names_none_twice(command: SeedCommand) -> None:
    flags = [word for word in command.argv if word.startswith("-")]
    assert all(re.fullmatch(r"--[a-z][a-z0-9_]*", flag) for flag in flags)
    assert len(set(flags)) == len(flags)
    assert command.argv[:1] == tuple(flags[:1])


@EVERY
def test_the_launcher_fits_the_script(command: SeedCommand) -> None:
    if command.launcher[-1] == "-m":
        assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", command.script)
    else:
        assert command.launcher == ("python",) or re.fullmatch(
            r"torchrun --nproc_per_node=\d", " ".join(command.launcher)
        )
        assert re.fullmatch(r"[a-z0-9_/]+\.py", command.script)
    assert all(re.fullmatch(r"[A-Z_]+", name) for name in command.environment)


@EVERY
def test_every_input_file_a_command_names_is_there(command: SeedCommand) -> None:
    named = [word for word in command.argv if word.startswith("assets/")]
    assert [path for path in named if not (ROOT / path).is_file()] == []
    if any(word in ("--input_image_or_video_path", "--batch_input_path") for word in command.argv):
        assert len(named) == 1


BATCH_KEYS = {
    # 000 passes it to the text door, 001 to the one that continues videos.
    "text2world.jsonl": {"prompt", "visual_input"},
    "video2world_ps.jsonl": {"visual_input"},
    "video2world_wo_ps.jsonl": {"prompt", "visual_input"},
}


@pytest.mark.parametrize("name", BATCH_KEYS)
def test_every_line_of_a_batch_file_has_the_keys_its_commands_need(name: str) -> None:
    lines = (ROOT / "assets/diffusion/batch_inputs" / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 2
    for record in map(json.loads, lines):
        assert set(record) == BATCH_KEYS[name]
        assert all(record.values())
        assert (ROOT / record["visual_input"]).is_file()


def test_input_files_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file()}
    assert {path: size for path, size in sizes.items() if size > 200_000} == {}
    assert sum(sizes.values()) < 2_000_000
