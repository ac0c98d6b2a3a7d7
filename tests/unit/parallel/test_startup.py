"""What a process settles first; the lock is tested on a process of its own, because here all is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_nemo.parallel.startup import import_megatron, set_up_allocator

ROOT = Path(__file__).parents[3]


def test_a_lock_that_a_killed_process_left_stops_nobody(tmp_path: Path) -> None:
    build = tmp_path / "managed_alloc_runtime"
    build.mkdir()
    (build / "lock").touch()
    code = "from cosmos_nemo.parallel.startup import prepare_process; prepare_process()"
    code += "; import os, megatron.core; print(os.environ['TORCH_EXTENSIONS_DIR'])"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(tmp_path)
    assert [path.name for path in build.iterdir()] == ["lock"]
    assert "unified memory" not in ended.stderr


def test_the_folder_of_extensions_stays_unsaid_where_it_was() -> None:
    environ: dict[str, str] = {}
    import_megatron(environ)
    assert environ == {}


def test_the_allocator_grows_its_segments() -> None:
    environ: dict[str, str] = {}
    set_up_allocator(environ)
    assert environ == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_who_says_how_the_allocator_works_is_obeyed(variable: str) -> None:
    environ = {variable: "max_split_size_mb:512"}
    set_up_allocator(environ)
    assert environ == {variable: "max_split_size_mb:512"}
