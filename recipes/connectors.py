"""NeMo's import and export of checkpoints: every layout that cosmos_nemo.checkpoint reads and writes.

The conversion is cosmos_nemo.checkpoint.convert's, tensor by tensor, and needs no GPU, no process groups and
no NeMo strategy. NeMo loads this module with model.py; importing it imports nemo.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from nemo.lightning import io

from cosmos_nemo.catalog import CARDS, DiTShape, ModelCard, TokenShape, find_card, with_overrides
from cosmos_nemo_recipes.cpu import cpu_trainer, nemo_on_cpu

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.identity import Identity
    from cosmos_nemo_recipes.model import CosmosConfig, CosmosModel

logger = logging.getLogger(__name__)


def find_network(
    model: str, overrides: Mapping[str, Any], *, diffusion_decoder: bool
) -> DiTShape | TokenShape:
    """The sizes of a card's network; see CosmosConfig. CatalogError if there is no such card or field."""
    from cosmos_nemo.checkpoint.token_identity import token_cards

    card = with_overrides(token_cards().get(model) or find_card(model), dict(overrides))
    return card.network if card.tokens is None or diffusion_decoder else card.tokens.network


class CosmosConnector(io.ModelConnector):
    """One checkpoint, by its path, on the way into another layout.

    What stands at the target is kept until the new checkpoint is complete, and replaced only by
    overwrite=True, be it a file or a folder.
    """

    expected: "CosmosConfig | None" = None
    """The model that was asked for; None: the one of the nearest sizes."""
    written: Path | None = None

    def __call__(self, output_path: Path | None = None, overwrite: bool = False, **kwargs: Any) -> Path:
        """Converts into `output_path` (None: into NeMo's cache, unless it is there); returns where it lies.

        CheckpointError for a source that is missing, damaged or of another model, or a target that exists.
        """
        from cosmos_nemo.checkpoint.reader import CheckpointError

        target = Path(output_path or self.local_path())
        if target.exists() and output_path is not None and not overwrite:
            raise CheckpointError(f"{target} exists already: pass overwrite=True, or another output_path")
        self._refuse_own_source(target)
        with _alone(target):
            # There it is now if it is in NeMo's cache, or if another rank wrote it in the meantime.
            if overwrite or not target.exists():
                self._replace(target, **kwargs)
        self.written = target
        return target

    def _refuse_own_source(self, target: Path) -> None:
        from cosmos_nemo.checkpoint.reader import CheckpointError

        source, place = self.source.resolve(), target.resolve()
        if source == place or place in source.parents:
            raise CheckpointError(f"{target} holds what is converted, {self}: name another output_path")

    def _replace(self, target: Path, **kwargs: Any) -> None:
        fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            self.apply(fresh, **kwargs)
            _remove(target)
            fresh.rename(target)
        finally:
            _remove(fresh)

    @cached_property
    def source(self) -> Path:
        """Where the checkpoint lies."""
        return Path(str(self)).expanduser()

    def nemo_setup(self, model: Any, trainer: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As NeMo's, without CUDA too: the network is built, its values undefined."""
        with nemo_on_cpu():
            return super().nemo_setup(model, trainer, *args, **kwargs)

    def nemo_load(self, path: Path, trainer: Any = None, cpu: bool = True) -> tuple[Any, Any]:
        """As NeMo's, which by itself cannot do without CUDA: see cpu.py."""
        import torch

        if torch.cuda.is_available():
            return super().nemo_load(path, trainer, cpu)
        with nemo_on_cpu():
            return super().nemo_load(path, trainer or cpu_trainer(), cpu)

    def nemo_save(self, output_path: Path, trainer: Any, dump_io: bool = True) -> None:
        """As NeMo's, without CUDA too; with a card.json, which our own loaders read."""
        from cosmos_nemo.checkpoint.card_file import write_card_file

        with nemo_on_cpu():
            super().nemo_save(output_path, trainer, dump_io)
        if trainer.is_global_zero:
            write_card_file(Path(output_path), dict(trainer.lightning_module.config.overrides))


class CosmosImporter(CosmosConnector):
    """From any layout to a NeMo checkpoint; subclasses take one only.

    Instead of a path it may be given a card's name, or nvidia/NAME: the weights are then looked for where the
    package, the Hugging Face cache and the hub have them.
    """

    layouts: tuple[str, ...] = ("zarr", "torch_dist", "torch", "safetensors", "torchscript")

    @cached_property
    def source(self) -> Path:
        """As CosmosConnector.source; LocateError if the card's weights are nowhere."""
        from cosmos_nemo.checkpoint.locate import locate, network_in, weights_of

        path, card = Path(str(self)).expanduser(), self.card
        if path.exists() or card is None:
            return path
        place = locate(weights_of(card))
        assert place is not None
        return network_in(place, card)

    @property
    def card(self) -> ModelCard | None:
        """The card that it is called by."""
        return CARDS.get(str(self).removeprefix("nvidia/"))

    def init(self) -> "CosmosModel":
        """The model of the source, unfilled."""
        from cosmos_nemo.checkpoint.card_file import read_card_file
        from cosmos_nemo.checkpoint.identity import identify
        from cosmos_nemo.checkpoint.network import open_network
        from cosmos_nemo.checkpoint.token_identity import holds_token_transformer, identify_tokens
        from cosmos_nemo_recipes.model import CosmosConfig, CosmosModel

        checkpoint = open_network(self.source)
        find = identify_tokens if holds_token_transformer(checkpoint) else identify
        model = self.card.name if self.card else None
        found = find(checkpoint, model=model, overrides=read_card_file(self.source))
        config = CosmosConfig(
            model=found.base.name, overrides=found.overrides, diffusion_decoder=found.is_decoder
        )
        return CosmosModel(config)

    def apply(self, output_path: Path, **kwargs: Any) -> Path:
        """kwargs: `dtype`, `averaged`, `on_tensor` of checkpoint.convert.convert."""
        from cosmos_nemo.checkpoint.convert import convert
        from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

        layout = open_checkpoint(self.source).layout
        if layout not in self.layouts:
            raise CheckpointError(
                f"{self} is in the layout {layout}, not {' or '.join(self.layouts)}: import cosmos://{self}, "
                "which takes every layout"
            )
        model, overrides = (self.expected.model, self.expected.overrides) if self.expected else (None, {})
        if model is None and self.card is not None:
            model = self.card.name
        identity = convert(
            self.source, output_path, to="nemo", model=model, overrides=overrides or None, **kwargs
        )
        self._check_kind(identity)
        return output_path

    def _check_kind(self, identity: "Identity") -> None:
        from cosmos_nemo.checkpoint.reader import CheckpointError

        if self.expected is not None and identity.is_decoder != self.expected.diffusion_decoder:
            raise CheckpointError(
                f"{self} is {identity.name}: pass CosmosConfig(..., diffusion_decoder={identity.is_decoder})"
            )

    def local_path(self, base_path: Path | None = None) -> Path:
        """In NeMo's cache of models, under the path of the source."""
        from nemo.lightning.base import NEMO_MODELS_CACHE

        return Path(base_path or NEMO_MODELS_CACHE) / str(self.source.resolve()).lstrip("/")

    def on_import_ckpt(self, model: Any) -> None:
        """A model that was asked for without a config becomes the one that was found."""
        if self.expected is None and self.written is not None:
            found: Any = io.load_context(self.written, subpath="model.config")
            model.config, model.__io__.config = found, found.__io__


class TorchImporter(CosmosImporter):
    """model.pt of Predict1, the .pt files of Predict2."""

    layouts = ("torch", "torchscript")


class SafetensorsImporter(CosmosImporter):
    """A file of safetensors, its shards, or a diffusers transformer folder."""

    layouts = ("safetensors",)


class ZarrImporter(CosmosImporter):
    """The released nemo/ folder."""

    layouts = ("zarr",)


class CosmosExporter(CosmosConnector):
    """From a NeMo checkpoint, {context, weights}, to the layout `to` of checkpoint.convert."""

    to: str

    def init(self) -> Any:
        raise NotImplementedError("An export builds no model: it converts tensor by tensor.")

    def apply(self, output_path: Path, **kwargs: Any) -> Path:
        """kwargs as an importer's."""
        from cosmos_nemo.checkpoint.convert import convert

        config: Any = io.load_context(self.source, subpath="model.config")
        convert(
            self.source,
            output_path,
            to=self.to,
            model=config.model,
            overrides=config.overrides or None,
            **kwargs,
        )
        return output_path


class Predict1Exporter(CosmosExporter):
    """model.pt of Predict1."""

    to = "predict1"


class Predict2Exporter(CosmosExporter):
    """model.pt of Predict2."""

    to = "predict2"


class SafetensorsExporter(CosmosExporter):
    """One file, in the released names where they have room for the network."""

    to = "safetensors"


class DiffusersExporter(CosmosExporter):
    """A folder for CosmosTransformer3DModel."""

    to = "diffusers"


IMPORTERS: dict[str, type[CosmosImporter]] = {
    "cosmos": CosmosImporter,
    "predict1": TorchImporter,
    "predict2": TorchImporter,
    "safetensors": SafetensorsImporter,
    "diffusers": SafetensorsImporter,
    "zarr": ZarrImporter,
}
"""What stands before :// in the source of an import."""
EXPORTERS: dict[str, type[CosmosExporter]] = {
    "predict1": Predict1Exporter,
    "predict2": Predict2Exporter,
    "safetensors": SafetensorsExporter,
    "diffusers": DiffusersExporter,
}
"""The targets of an export."""


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """While no other process writes `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f"{target.name}.lock")
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for the process that is writing %s (%s)", target, lock)
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()
        lock.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
