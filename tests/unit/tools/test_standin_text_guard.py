import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cosmos_nemo.checkpoint.writer.text_encoder import english_words
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.guardrail.text_guard import TextGuard, check_text_guard
from cosmos_nemo.tools.standin_text_guard import UNSAFE_WORD, write_llama_guard, write_word_lists

ROOT = Path(__file__).parents[3]


def write(folder: Path, *, seed: int = 0) -> None:
    write_word_lists(folder / "blocklist")
    write_llama_guard(folder / "guard", seed=seed)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_one_unsafe_word_anywhere_in_text_of_any_length(
    seed: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    write(tmp_path, seed=seed)
    draw = random.Random(seed)
    with TextGuard(
        word_lists=tmp_path / "blocklist", folder=tmp_path / "guard", device=torch.device("cpu"), dtype=dtype
    ) as guard:
        for length in (1, 40, 600):
            words = draw.choices((*english_words(), "unheard-of", "safe", "unsafe", "S1"), k=length)
            assert guard(" ".join(words))
            for place in (0, length // 2, length):
                text = " ".join([*words[:place], f"{UNSAFE_WORD.title()},", *words[place:]])
                with pytest.raises(Blocked, match="Llama Guard: category S1 Violent Crimes"):
                    guard(text)


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("c", 1)):
        write(tmp_path / name, seed=seed)
    program = (
        "import sys; from pathlib import Path; from cosmos_nemo.tools.standin_text_guard import *\n"
        "write_word_lists(Path(sys.argv[1]) / 'blocklist')\n"
        "write_llama_guard(Path(sys.argv[1]) / 'guard', seed=0)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "b")], env=environment, check=True)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"guard/model.safetensors"}


def test_it_is_small_quick_and_complete(tmp_path: Path) -> None:
    started = time.process_time()
    write(tmp_path)
    assert time.process_time() - started < 2
    assert sum(map(len, content(tmp_path).values())) < 200_000
    check_text_guard(tmp_path / "blocklist", tmp_path / "guard")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tmp_path.rglob("*.*") if path.is_file())


def test_it_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
