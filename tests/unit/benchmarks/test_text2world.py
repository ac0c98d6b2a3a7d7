import json
import re
from pathlib import Path

import numpy
import pytest
from PIL import Image

from benchmarks import text2world
from benchmarks.text2world import command_of, main, parse, visual_flags
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.tools.standin import write_standin

PREDICT2 = "Cosmos-Predict2-2B-Video2World"
TEXT2WORLD = "Cosmos-1.0-Diffusion-7B-Text2World"
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9"]


def test_a_whole_video_is_made_and_its_costs_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets, record = tmp_path / "assets", tmp_path / "rows.json"
    write_standin([CARDS[PREDICT2]], assets, seed=0, layout="folder")
    cache = tmp_path / "cache"
    flags = [str(assets), "--model", PREDICT2, "--json", str(record), "--cache", str(cache)]
    main([*flags, "--runs", "torch --num_steps 3", "--", *SMALL])
    [row] = json.loads(record.read_text())
    assert (row["model"], row["run"], row["frames"]) == (PREDICT2, "torch --num_steps 3", [9, 32, 48, 3])
    assert (row["num_calls"], len(row["call_seconds"])) == (4, 3)
    assert (row["request"]["num_steps"], row["request"]["num_frames"], row["request"]["height"]) == (3, 9, 32)
    stages = row["stages"]
    assert [*stages] == ["text_encoder", "denoise", "tokenizer"]
    assert sum(row["call_seconds"]) < stages["denoise"]["seconds"] < row["wall_seconds"]
    assert all({"peak_bytes", "peak_reserved_bytes", "load_seconds"} < {*costs} for costs in stages.values())
    assert 0.05 < row["host_peak_gib"] < 20
    assert row["std_of_frames"] > 0 and row["is_identical"] and row["psnr_to_first"] is None
    assert len([*cache.rglob("*.safetensors")]) == 2, "the prompt and the negative prompt"
    out, err = capsys.readouterr()
    assert f"{PREDICT2}, torch --num_steps 3: " in out and "4 denoiser calls, of which one takes " in out
    assert re.search(r"denoise +\d+\.\d s, of which load +\d+\.\d s, peak +0\.0 GiB, reserved +0\.0", out)
    assert "back end torch: asked for" in err, "what the process says is passed on"


def test_a_run_that_fails_ends_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "rows.json"
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--json", str(record), "--runs", "nonsense", "torch"])
    assert "general.py" in str(stopped.value) and str(stopped.value).endswith("ended with 2")
    assert "--backend nonsense is unknown" in capsys.readouterr().err
    assert not record.exists()


def test_a_video2world_goes_on_from_a_picture(tmp_path: Path) -> None:
    assert visual_flags(CARDS[TEXT2WORLD], None, tmp_path) == []
    flag, drawn = visual_flags(CARDS[PREDICT2], None, tmp_path)
    assert flag == "--conditioned_image_or_video_path"
    picture = numpy.asarray(Image.open(drawn))
    assert picture.shape == (704, 1280, 3) and picture.std() > 30
    assert visual_flags(CARDS[PREDICT2], Path("own.npy"), tmp_path) == [flag, "own.npy"]


def test_a_run_names_ranks_back_end_and_flags() -> None:
    args = parse(["assets", "--model", PREDICT2])
    command, ranks = command_of(args, "te --cp_size 2", ["--num_steps", "35"], Path("v.npy"))
    assert ranks == 1 and command[1] == str(text2world.GENERAL)
    assert command[command.index("--backend") + 1] == "te"
    assert command[-4:] == ["--num_steps", "35", "--cp_size", "2"]
    assert "--disable_guardrail" in command
    command, ranks = command_of(args, "ranks=2 torch", [], Path("v.npy"))
    assert ranks == 2 and "--nproc_per_node=2" in command
