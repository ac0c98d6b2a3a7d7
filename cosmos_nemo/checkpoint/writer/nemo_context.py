"""NeMo's `context/` beside the weights, written as plain data: io.json, the object graph that
`nemo.lightning.io.load_context` builds, and model.yaml, the same for people.

io.json is what fiddle 0.3 serialises a Config as (its version 0.0.1); NeMo is not needed to write it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CONTEXT = "context"
MODEL_CLASS, CONFIG_CLASS = "CosmosModel", "CosmosConfig"
MODULE = "cosmos_nemo_recipes.model"
"""Where NeMo finds both classes."""
_IO, _ROOT = "io.json", "<root>"
_TRAINER_CONTEXT = ("nemo.lightning.io.pl", "TrainerContext")
_FIDDLE = "fiddle._src.config"


@dataclass(frozen=True, kw_only=True)
class NeMoContext:
    """Arguments of a checkpoint's CosmosConfig: the card's name, its card.json, which of its networks."""

    model: str
    overrides: Mapping[str, Any]
    diffusion_decoder: bool = False

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        plain = json.loads(json.dumps(dict(self.overrides)))
        return {
            "model": self.model,
            "overrides": plain,
            "diffusion_decoder": self.diffusion_decoder,
            "params_dtype": dtype,
        }


def write_context(folder: Path, context: NeMoContext, *, dtype: torch.dtype) -> None:
    """Writes `folder/context/{io.json,model.yaml}`; the network is then built with parameters of `dtype`."""
    config = context.config(dtype)
    (folder / CONTEXT).mkdir(exist_ok=True)
    (folder / CONTEXT / _IO).write_text(json.dumps(_Graph().of(config)) + "\n", encoding="utf-8")
    readable = config | {"_target_": f"{MODULE}.{CONFIG_CLASS}", "params_dtype": str(dtype)}
    model = {"_target_": f"{MODULE}.{MODEL_CLASS}", "config": readable}
    # JSON is YAML too.
    (folder / CONTEXT / "model.yaml").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")


def named_in_context(folder: Path) -> str | None:
    """The card that `folder/context` names; None if there is none, or it is one of other classes."""
    try:
        graph = json.loads((folder / CONTEXT / _IO).read_text(encoding="utf-8"))
        values = [value for entry in graph["objects"].values() for _, value in entry["items"]]
        named = (v["value"] for v in values if f"{_ROOT}.model.config.model" in v.get("paths", ()))
        return next((name for name in named if isinstance(name, str)), None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # whatever it is, it is none of ours


class _Graph:
    """Objects by key, each of which says where below `<root>` it lies, so that one can be loaded alone."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """TrainerContext(model=CosmosModel(config=CosmosConfig(**config)), trainer=None, extra={})."""
        made = self._built((MODULE, CONFIG_CLASS), config, at=f"{_ROOT}.model.config")
        model = self._built((MODULE, MODEL_CLASS), {"config": made}, at=f"{_ROOT}.model")
        whole = self._built(_TRAINER_CONTEXT, {"model": model, "trainer": None, "extra": {}}, at=_ROOT)
        # Each object is referred to once.
        return {
            "root": whole.link,
            "objects": self.objects,
            "refcounts": dict.fromkeys(self.objects, 1),
            "version": "0.0.1",
        }

    def _built(self, kind: tuple[str, str], arguments: Mapping[str, Any], *, at: str) -> "_Reference":
        """The Config of a class and its arguments."""
        values = {name: self._value(value, at=f"{at}.{name}") for name, value in arguments.items()}
        metadata = {
            "fn_or_cls": _pyref(*kind),
            "argument_names": self._value(tuple(arguments)),
            "argument_tags": self._value({}),
            "argument_history": self._value({}),
        }
        traverser = _pyref(_FIDDLE, "BuildableTraverserMetadata")
        about = self._add("metadata", traverser, _attributes(metadata), metadata=traverser)
        return self._add("config", _pyref(_FIDDLE, "Config"), _attributes(values), metadata=about.link, at=at)

    def _value(self, value: Any, *, at: str | None = None) -> dict[str, Any]:
        places = {} if at is None else {"paths": [at]}
        if isinstance(value, _Reference):
            return value.link
        if isinstance(value, torch.dtype):
            return _pyref("torch", str(value).removeprefix("torch.")) | places
        if isinstance(value, dict):
            names = self._value(tuple(value))
            items = [
                (f"Key(key={name!r})", self._value(each, at=at and f"{at}[{name!r}]"))
                for name, each in value.items()
            ]
            return self._add("dict", _pyref("builtins", "dict"), items, metadata=names, at=at).link
        if isinstance(value, list | tuple):
            items = [
                (f"Index(index={i})", self._value(each, at=at and f"{at}[{i}]"))
                for i, each in enumerate(value)
            ]
            return self._add(
                type(value).__name__, _pyref("builtins", type(value).__name__), items, at=at
            ).link
        return {"type": "leaf", "value": value} | places

    def _add(
        self,
        name: str,
        kind: dict[str, str],
        items: list[tuple[str, Any]],
        *,
        metadata: Any = None,
        at: str | None = None,
    ) -> "_Reference":
        key = f"{name}_{len(self.objects) + 1}"
        entry = {"type": kind, "items": items, "metadata": metadata}
        self.objects[key] = entry if at is None else entry | {"paths": [at]}
        return _Reference(key)


@dataclass(frozen=True)
class _Reference:
    key: str

    @property
    def link(self) -> dict[str, str]:
        return {"type": "ref", "key": self.key}


def _pyref(module: str, name: str) -> dict[str, Any]:
    return {"type": "pyref", "module": module, "name": name}


def _attributes(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"Attr(name={name!r})", value) for name, value in values.items()]
