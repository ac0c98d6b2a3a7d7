"""The networks as NeMo models: what the `context/` of a checkpoint names, and so NeMo's tools build.

NeMo loads this module; importing it imports nemo, which takes seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.lightning import io
from torch import nn
from torch.nn import functional as F

from cosmos_nemo.catalog import CARDS, DiTShape, TokenShape
from cosmos_nemo_recipes.connectors import EXPORTERS, IMPORTERS, CosmosConnector


@dataclass
class CosmosConfig(TransformerConfig, io.IOMixin):
    """A network of a card, whose sizes fill Megatron's fields.

    `model` is the card's name (`cosmos-nemo models` lists them), `overrides` what a card.json would say. An
    autoregressive card has two networks: the transformer, or with `diffusion_decoder` its decoder.
    CatalogError for a name or a field that does not exist.
    """

    model: str = next(iter(CARDS))
    overrides: dict[str, Any] = field(default_factory=dict)
    diffusion_decoder: bool = False

    def __post_init__(self) -> None:
        shape = self.shape
        self.num_layers, self.hidden_size = shape.num_layers, shape.hidden_size
        self.num_attention_heads, self.kv_channels = shape.num_heads, shape.head_dim
        self.ffn_hidden_size = shape.ffn_hidden_size
        self.activation_func: Any = F.gelu
        if isinstance(shape, TokenShape):
            self.num_query_groups, self.layernorm_epsilon = shape.num_kv_heads, shape.norm_eps
            self.activation_func, self.gated_linear_unit, self.qk_layernorm = F.silu, True, True
        self.add_bias_linear, self.normalization = False, "RMSNorm"
        self.hidden_dropout = self.attention_dropout = 0.0
        self.bf16 = self.params_dtype == torch.bfloat16
        super().__post_init__()

    @property
    def shape(self) -> DiTShape | TokenShape:
        """The sizes of the network."""
        from cosmos_nemo_recipes.connectors import find_network

        return find_network(self.model, self.overrides, diffusion_decoder=self.diffusion_decoder)

    def configure_model(self) -> nn.Module:
        """The Megatron module with this rank's parameters, on the GPU if there is one; NaN until loaded.

        Without process groups, those of one rank are started.
        """
        from megatron.core import parallel_state
        from megatron.core.process_groups_config import ProcessGroupCollection

        from cosmos_nemo.models.build import build_network
        from cosmos_nemo.models.common.backend import te_backend, torch_backend
        from cosmos_nemo.models.common.missing import te_missing
        from cosmos_nemo.models.token_transformer.model import build_token_transformer
        from cosmos_nemo.parallel.groups import start_alone

        on_cpu = self.use_cpu_initialization or not torch.cuda.is_available()
        device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        if not parallel_state.model_parallel_is_initialized():
            start_alone(device)
        build: Callable[..., nn.Module] = build_network
        if isinstance(self.shape, TokenShape):
            build = build_token_transformer
        network = build(
            self.shape,
            backend=torch_backend() if on_cpu or te_missing() else te_backend(),
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(
                ["tp", "cp", "dp", "dp_cp", "pp", "mp"]
            ),
            device=device,
            dtype=self.params_dtype,
        )
        if self.perform_initialization:
            for parameter in network.parameters():
                parameter.fill_(torch.nan)
        return network


class CosmosModel(pl.LightningModule, io.IOMixin, io.ConnectorMixin):
    """A network with NeMo's import, export, save and load; its `module` is the Megatron network.

    Without `config` it is of the first card, until an import says which: then it is found by the sizes in
    the file. Post-training is `cosmos-nemo post-train`, not NeMo's loop.
    """

    def __init__(self, config: CosmosConfig | None = None) -> None:
        super().__init__()
        self.is_known = config is not None
        self.config = config or CosmosConfig()
        self.optim = None
        self.model_transform = None

    def configure_model(self) -> None:
        if not hasattr(self, "module"):
            self.module = self.config.configure_model()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def configure_optimizers(self) -> None:
        """None: see the class."""

    def training_step(self, batch: Any, batch_idx: int | None = None) -> Any:
        raise NotImplementedError(
            f"{self.config.model} is not trained in NeMo's loop: post-train it with `cosmos-nemo "
            "post-train`, whose checkpoints NeMo reads."
        )

    def importer(self, path: str) -> CosmosConnector:
        """The importer of `path`, e.g. predict1:///models/model.pt, which expects this model."""
        connector: CosmosConnector = type(self)._get_connector(path)
        connector.expected = self.config if self.is_known else None
        return connector

    def import_ckpt(
        self, path: str, overwrite: bool = False, base_path: Path | None = None, **kwargs: Any
    ) -> Path:
        """As io.import_ckpt, into NeMo's cache of models or `base_path`."""
        connector = self.importer(path)
        place = None if base_path is None else connector.local_path(base_path=base_path)
        written = connector(place, overwrite=overwrite, **kwargs)
        connector.on_import_ckpt(self)
        return written


for name, importer in IMPORTERS.items():
    io.model_importer(CosmosModel, name)(importer)
for name, exporter in EXPORTERS.items():
    io.model_exporter(CosmosModel, name)(exporter)
