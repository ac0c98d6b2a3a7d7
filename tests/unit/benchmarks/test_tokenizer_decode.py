import json
import math
from pathlib import Path

import pytest

from benchmarks import tokenizer_decode

SMALL = ("--device", "cpu", "--channels", "8", "--height", "32", "--width", "32", "--repeats", "1")


@pytest.mark.parametrize(("kind", "frames"), [("cosmos", 17), ("wan", 9)])
def test_every_way_makes_the_frames_of_diffusers(kind: str, frames: int, tmp_path: Path) -> None:
    """But for levels that lie at the edge of two: float32 on a CPU."""
    record = tmp_path / "rows.json"
    words = ("--kind", kind, "--frames", f"{frames}", "--pieces", "1", "2", "--json", str(record))
    tokenizer_decode.main([*SMALL, *words])
    rows = json.loads(record.read_text())["rows"]
    assert [row["way"] for row in rows] == ["diffusers", "pieces of 1", "pieces of 2"]
    for row in rows:
        assert row["seconds"] > 0
        assert row["psnr_to_unsplit"] > 60 and row["psnr_to_float32"] > 60


def test_a_profile_is_of_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer_decode.main([*SMALL, "--frames", "9", "--pieces", "2", "--profile"])
    assert "convolution" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "frames", "rule"), [("cosmos", 20, "8k+1"), ("wan", 11, "4k+1")])
def test_a_number_of_frames_that_is_not_decoded_to_is_refused(
    kind: str, frames: int, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tokenizer_decode.parse(["--kind", kind, "--frames", str(frames)])
    assert f"--frames {frames}: this tokenizer makes {rule} frames" in capsys.readouterr().err


def test_the_psnr_of_the_same_frames_is_infinite() -> None:
    import torch

    frames = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3)
    assert tokenizer_decode.psnr(frames, frames) == math.inf
    assert tokenizer_decode.psnr(frames, frames + 1) == pytest.approx(20 * math.log10(255))
