"""Imports go down only, and what is dangerous or slow has one place: read from the source, not run."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"catalog", "request", "plan", "memory"},
    {"sampling", "parallel"},
    {"models", "checkpoint"},
    {"stages"},
    {"pipelines", "training"},
    {"launch", "fetch", "items", "job", "cli", "console"},
    {"tools"},
)
LAYER_OF = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# The units of these layers may import each other; the others of one layer may not.
FAMILIES = (LAYERS[0], LAYERS[5])

STANDARD_LIBRARY_ONLY = ("catalog", "request", "plan", "memory", "memory.*", "cli", "cli.*")
TRANSFORMER_ENGINE_IN = (
    "models.*.spec",
    "models.common.backend",
    "models.common.missing",
    "models.common.fp8_cudnn",
)
NEMO_IN = ("checkpoint.writer", "checkpoint.writer.*", "training", "training.*")
SLOW = {"diffusers", "transformers", "huggingface_hub", "imageio"}
SLOW_AT_TOP_IN = ("models.*", "stages.*")
SAMPLING_MAY_USE = {"torch", "numpy", "einops"}
STARTS_PROCESS_GROUPS = {"init_process_group", "initialize_model_parallel"}
MAY_PRINT = ("launch", "fetch", "cli", "tools", "tools.*")


@dataclass(frozen=True)
class Import:
    """One imported module; `at_top`: importing the file imports it."""

    target: str
    line: int
    at_top: bool

    @property
    def distribution(self) -> str:
        return self.target.partition(".")[0]

    @property
    def unit(self) -> str | None:
        """`models` for cosmos_nemo.models.common; None outside the package."""
        parts = self.target.split(".")
        return parts[1] if parts[0] == "cosmos_nemo" and len(parts) > 1 else None


def imports_of(tree: ast.Module, *, module: str, is_package: bool) -> list[Import]:
    return list(_imports(tree, module if is_package else module.rpartition(".")[0], at_top=True))


def _imports(node: ast.AST, package: str, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(target, child.lineno, at_top) for target in _from_targets(child, package))
        elif isinstance(child, ast.Call) and _name(child.func) in ("import_module", "__import__"):
            named = [argument for argument in child.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(str(argument.value), child.lineno, at_top) for argument in named)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and _name(child.test) == "TYPE_CHECKING"
        )
        yield from _imports(child, package, at_top and not later)


def _from_targets(node: ast.ImportFrom, package: str) -> list[str]:
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base] if base else parents)
    # `from cosmos_nemo import catalog` names a module; deeper, the module is what stands after `from`.
    deeper = base in ("cosmos_nemo", "megatron.core", "megatron.core.extensions")
    return [f"{base}.{alias.name}" for alias in node.names] if deeper else [base]


def _name(node: ast.AST) -> str:
    """The last part of a name: `init_process_group` for torch.distributed.init_process_group."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def complaints(path: str, source: str) -> list[str]:
    """What is wrong with one file; `path` is relative to the root, e.g. cosmos_nemo/models/common/rope.py."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    tree = ast.parse(source)
    imports = imports_of(tree, module=module, is_package=path.endswith("__init__.py"))
    if path.startswith("recipes/"):
        found = list(_recipe_complaints(imports))
    else:
        inside = module.partition(".")[2]
        found = [
            *_layer_complaints(inside, imports),
            *_place_complaints(inside, imports),
            *_calls(inside, tree),
        ]
    return [f"{path}:{line} {what}" for line, what in found]


def _recipe_complaints(imports: list[Import]) -> Iterator[tuple[int, str]]:
    for each in imports:
        if each.at_top and each.unit not in (None, *LAYERS[0]):
            yield each.line, f"imports {each.target} at the top: nemo_run swallows what fails there"


def _layer_complaints(inside: str, imports: list[Import]) -> Iterator[tuple[int, str]]:
    own = inside.partition(".")[0]
    if own and own not in LAYER_OF:
        yield 1, f"has no layer: name {own} in LAYERS"
        return
    for each in imports:
        if each.unit not in LAYER_OF or each.unit == own:
            continue
        if not own:
            yield each.line, f"imports {each.target}: the package's own file imports nothing of it"
        elif LAYER_OF[each.unit] > LAYER_OF[own]:
            yield each.line, f"imports upwards: {each.target}"
        elif LAYER_OF[each.unit] == LAYER_OF[own] and not any({own, each.unit} <= f for f in FAMILIES):
            yield each.line, f"imports its neighbour {each.target}"


def _place_complaints(inside: str, imports: list[Import]) -> Iterator[tuple[int, str]]:
    for each in imports:
        first = each.distribution
        foreign = first != "cosmos_nemo" and first not in sys.stdlib_module_names
        if foreign and each.at_top and (not inside or _is_one_of(inside, STANDARD_LIBRARY_ONLY)):
            yield each.line, f"imports {each.target} at the top: --help waits for it"
        if (
            _is_one_of(inside, ("cli", "cli.*"))
            and each.at_top
            and each.unit not in (None, "cli", *LAYERS[0])
        ):
            yield each.line, f"imports {each.target} at the top: --help waits for it"
        if "transformer_engine" in each.target and not _is_one_of(inside, TRANSFORMER_ENGINE_IN):
            yield each.line, f"imports {each.target}: that is for the back end"
        if first in ("nemo", "nemo_run") and not _is_one_of(inside, NEMO_IN):
            yield (
                each.line,
                f"imports {each.target}: NeMo stays in recipes, training and the checkpoint writer",
            )
        if first in SLOW and each.at_top and not _is_one_of(inside, SLOW_AT_TOP_IN):
            yield each.line, f"imports {each.target} at the top: it is slow"
        if foreign and inside.startswith("sampling") and first not in SAMPLING_MAY_USE:
            yield each.line, f"imports {each.target}: sampling knows torch only"


def _calls(inside: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if inside != "parallel.groups" and STARTS_PROCESS_GROUPS & _names_used(node):
            yield line, "starts process groups: only parallel/groups.py does"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield line, "calls .cuda(): devices are arguments"
        if isinstance(node.func, ast.Name) and node.func.id == "print" and not _is_one_of(inside, MAY_PRINT):
            yield line, "prints: doors and tools do, the rest logs"


def _names_used(node: ast.AST) -> set[str]:
    return {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else {_name(node)}


def _is_one_of(inside: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(inside, pattern) for pattern in patterns)


def test_no_file_breaks_the_layering() -> None:
    files = sorted([*ROOT.glob("cosmos_nemo/**/*.py"), *ROOT.glob("recipes/**/*.py")])
    assert len(files) > 5
    found = [
        c for f in files for c in complaints(f.relative_to(ROOT).as_posix(), f.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        (
            "cosmos_nemo/request.py",
            "from cosmos_nemo.stages import base",
            "imports upwards: cosmos_nemo.stages",
        ),
        (
            "cosmos_nemo/sampling/res.py",
            "from cosmos_nemo import models",
            "imports upwards: cosmos_nemo.models",
        ),
        (
            "cosmos_nemo/sampling/res.py",
            "from ..stages.base import Stage",
            "imports upwards: cosmos_nemo.stages",
        ),
        ("cosmos_nemo/sampling/__init__.py", "from ..cli import main", "imports upwards: cosmos_nemo.cli"),
        ("cosmos_nemo/models/common/a.py", "def f():\n  import cosmos_nemo.launch", ":2 imports upwards"),
        (
            "cosmos_nemo/stages/a.py",
            "import importlib\nimportlib.import_module('cosmos_nemo.cli')",
            ":2 imports up",
        ),
        ("cosmos_nemo/models/a.py", "from cosmos_nemo.checkpoint.reader import x", "imports its neighbour"),
        ("cosmos_nemo/checkpoint/a.py", "from cosmos_nemo.models.common import x", "imports its neighbour"),
        ("cosmos_nemo/sampling/a.py", "import cosmos_nemo.parallel.groups", "imports its neighbour"),
        ("cosmos_nemo/__init__.py", "from cosmos_nemo.catalog import CARDS", "imports nothing of it"),
        ("cosmos_nemo/helpers.py", "import math", "has no layer"),
        ("cosmos_nemo/catalog.py", "import numpy", "--help waits"),
        ("cosmos_nemo/__init__.py", "import torch", "--help waits"),
        (
            "cosmos_nemo/cli.py",
            "try:\n  import torch\nexcept ImportError:\n  torch = None",
            ":2 imports torch",
        ),
        ("cosmos_nemo/cli.py", "from cosmos_nemo.parallel.groups import x", "--help waits"),
        (
            "cosmos_nemo/models/cosmos1_dit/model.py",
            "import transformer_engine.pytorch as te",
            "is for the back end",
        ),
        (
            "cosmos_nemo/launch.py",
            "def f():\n  from megatron.core.extensions import transformer_engine",
            ":2 imports",
        ),
        ("cosmos_nemo/stages/a.py", "from nemo import lightning", "NeMo stays"),
        ("cosmos_nemo/tools/a.py", "def f():\n  import nemo_run", "NeMo stays"),
        ("cosmos_nemo/checkpoint/convert.py", "import nemo.lightning.io", "NeMo stays"),
        ("cosmos_nemo/launch.py", "import huggingface_hub", "it is slow"),
        ("cosmos_nemo/sampling/a.py", "def f():\n  from tqdm import tqdm", "sampling knows torch only"),
        (
            "cosmos_nemo/launch.py",
            "import torch.distributed as d\nd.init_process_group('gloo')",
            ":2 starts process groups",
        ),
        (
            "cosmos_nemo/models/a.py",
            "from torch.distributed import init_process_group",
            "only parallel/groups.py",
        ),
        ("cosmos_nemo/parallel/a.py", "mpu.initialize_model_parallel(2)", "only parallel/groups.py"),
        ("cosmos_nemo/stages/a.py", "x = module.cuda()", "devices are arguments"),
        ("cosmos_nemo/pipelines/a.py", "print(1)", "doors and tools do"),
        ("recipes/a.py", "from cosmos_nemo.launch import main", "nemo_run swallows"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str, complaint: str) -> None:
    found = complaints(path, source)
    assert len(found) >= 1
    assert complaint in "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cosmos_nemo/plan.py", "from cosmos_nemo.request import RequestError\nfrom .catalog import CARDS"),
        ("cosmos_nemo/sampling/res.py", "import math\nimport numpy\nimport torch\nfrom .schedule import edm"),
        (
            "cosmos_nemo/stages/a.py",
            "from cosmos_nemo.models.common import x\nimport cosmos_nemo.checkpoint.load",
        ),
        ("cosmos_nemo/models/common/dit/spec.py", "def f():\n  import transformer_engine.pytorch"),
        ("cosmos_nemo/models/common/backend.py", "def f():\n  import transformer_engine.pytorch"),
        ("cosmos_nemo/checkpoint/writer.py", "def f():\n  from nemo.lightning import io"),
        ("cosmos_nemo/training/loop.py", "import nemo.lightning"),
        ("cosmos_nemo/parallel/groups.py", "torch.distributed.init_process_group('gloo')"),
        (
            "cosmos_nemo/cli.py",
            "import argparse\ndef main():\n  from cosmos_nemo.launch import run\n  print(1)",
        ),
        ("cosmos_nemo/cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import torch"),
        ("cosmos_nemo/launch.py", "def f():\n  import imageio\n  print(torch.cuda.device_count())"),
        ("cosmos_nemo/tools/main.py", "from cosmos_nemo.cli import parse\nprint(1)"),
        (
            "recipes/a.py",
            "import nemo_run\nfrom cosmos_nemo.catalog import CARDS\ndef f():\n  import cosmos_nemo.launch",
        ),
    ],
)
def test_what_the_rules_allow_is_not_found(path: str, source: str) -> None:
    assert complaints(path, source) == []


LIGHT = ("", "catalog", "request", "plan", "memory", "cli")


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_modules_load_the_standard_library_only(name: str) -> None:
    before = modules_after("pass")
    loaded = modules_after(f"import cosmos_nemo.{name}" if name else "import cosmos_nemo") - before
    assert loaded - set(sys.stdlib_module_names) == {"cosmos_nemo"}
