import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from benchmarks.door_runs import CallTimes, compare, launched, own_and_shared, pass_on, show, watched


def test_calls_are_timed_within_a_sample_and_counted_over_all() -> None:
    times = CallTimes()
    pieces = ["| 0/3 [00", "| 1/3 [00\r| 1/3 ", "[01", " | 2/", "3 [02", "|███| 3/3 [03", "done 1/2\n"]
    pieces += ["| 0/2 [00| 1/2 [00", "|██ | 2/2 [07"]
    for number, piece in enumerate(pieces):
        times.note(piece, float(number**2))
    assert times.num_calls == 5
    assert times.seconds == [4**2 - 1**2, 5**2 - 4**2, 8**2 - 7**2]


def test_letters_that_come_in_two_halves_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    text = "|█| 0/1 [00\r|█| 1/1 [00"
    times = CallTimes()
    halves = "import sys, time; out = sys.stderr.buffer; out.write({0!r}); out.flush(); time.sleep(0.2); "
    program = (halves + "out.write({1!r})").format(text.encode()[:2], text.encode()[2:])
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        pass_on(process.stderr, times.note)
    assert (times.num_calls, times.seconds) == (1, [])
    assert capsys.readouterr().err == text


def test_a_run_may_name_its_ranks_and_no_flag() -> None:
    assert launched("") == ([sys.executable], 1, [])
    launcher, ranks, words = launched("ranks=2 te --cp_size 2")
    assert (ranks, words) == (2, ["te", "--cp_size", "2"]) and "--nproc_per_node=2" in launcher


def test_flags_after_two_dashes_are_the_doors() -> None:
    assert own_and_shared(["A", "--runs", "x", "--", "--seed", "3"]) == (
        ["A", "--runs", "x"],
        ["--seed", "3"],
    )
    assert own_and_shared(["A"]) == (["A"], [])


def test_a_command_that_fails_ends_the_benchmark_and_one_that_does_not_is_timed(tmp_path: Path) -> None:
    program = "import os, time; assert 'TQDM_MININTERVAL' in os.environ; time.sleep({})"
    cost = watched([sys.executable, "-c", program.format(0.3)], cache=tmp_path)
    assert cost["wall_seconds"] > 0.3 and cost["host_peak_gib"] > 0
    with pytest.raises(SystemExit, match="ended with 5"):
        watched([sys.executable, "-c", "raise SystemExit(5)"], cache=tmp_path)


def test_frames_are_compared_with_those_of_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = numpy.zeros((5, 8, 8, 3), numpy.uint8)
    for name, array in (("a", frames), ("b", frames + 51), ("c", frames[:, :4])):
        numpy.save(tmp_path / f"{name}.npy", array)
    told = {}
    for name in "abc":
        row = {"model": "M", "run": name, "wall_seconds": 1.0, "host_peak_gib": 1.0, "call_seconds": []}
        compare(row, tmp_path / f"{name}.npy", tmp_path / "a.npy")
        show({**row, "stages": {}})
        told[name] = capsys.readouterr().out.strip().rpartition("PSNR ")[2]
        json.dumps(row, allow_nan=False)
    assert told == {"a": "identical", "b": "14.0 dB", "c": "none"}
