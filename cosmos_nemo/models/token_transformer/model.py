"""The autoregressive transformer of video tokens (spec/predict1-autoregressive.md, 1 and 4.2).

Legend: S tokens, B batch, V vocabulary, D width, L text length, N and M query and key heads of this rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.common.linears import column
from cosmos_nemo.models.common.sharded import stacked_layers, without_extra_states
from cosmos_nemo.models.token_transformer.attention import attend_causally, attend_with_one
from cosmos_nemo.models.token_transformer.cache import KeyValueCache, empty_cache
from cosmos_nemo.models.token_transformer.layers import TextKeyValue, TokenLayer, rms_norm
from cosmos_nemo.models.token_transformer.one_token import has_kernels, read_token
from cosmos_nemo.models.token_transformer.positions import Positions, token_positions
from cosmos_nemo.models.token_transformer.spec import layer_spec, transformer_config
from cosmos_nemo.parallel.context import gather_tokens

Text = Sequence[TextKeyValue]
"""A layer's keys and values each, as encode_text makes them."""

AttendInLayer = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Number of the layer, q_SBNK, k_SBMK, v_SBMK -> SBNK."""


class TokenTransformerError(ValueError):
    """Sizes, tokens or text that do not fit the network."""


def build_token_transformer(
    shape: TokenShape,
    *,
    backend: Backend,
    pg_collection: ProcessGroupCollection,
    device: torch.device,
    dtype: torch.dtype,
) -> "TokenTransformer":
    """The network with this rank's share of the parameters allocated on `device`, their values undefined.

    TokenTransformerError for sizes that cannot be, or do not divide by the tensor parallel ranks.
    """
    _check_sizes(shape)
    _check_divides(shape, pg_collection.tp.size())
    with torch.device("meta"):
        network = TokenTransformer(
            shape,
            config=transformer_config(shape, backend=backend, pg_collection=pg_collection, dtype=dtype),
            layer=layer_spec(shape, backend),
            norm=backend.rms_norm,
            pg_collection=pg_collection,
        )
    return network.to_empty(device=device).requires_grad_(False).eval()


class TokenEmbedding(MegatronModule):
    """[B, S] ids -> [S, B, D]; each tensor parallel rank has some rows of the vocabulary."""

    def __init__(self, rows: int, config: TransformerConfig, pg_collection: ProcessGroupCollection) -> None:
        super().__init__(config)
        self.word_embeddings = VocabParallelEmbedding(
            rows,
            config.hidden_size,
            init_method=config.init_method,
            config=config,
            tp_group=pg_collection.tp,
        )

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return self.word_embeddings(tokens_BS).transpose(0, 1).contiguous()


class Decoder(MegatronModule):
    """The layers and the last norm, under the names the checkpoint has for them."""

    def __init__(
        self, config: TransformerConfig, layers: list[nn.Module], final_layernorm: nn.Module
    ) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(layers)
        self.final_layernorm = final_layernorm

    def __iter__(self) -> Iterator[TokenLayer]:
        return iter(cast(list[TokenLayer], self.layers))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The layers stacked, their norms in the linears after them, as NeMo's checkpoints have them."""
        last: dict[str, Any] = sharded_state_dict_default(
            self.final_layernorm, f"{prefix}final_layernorm.", sharded_offsets, metadata
        )
        return last | stacked_layers(
            self,
            prefix=prefix,
            sharded_offsets=sharded_offsets,
            metadata=metadata,
            stored_names={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        )


class TokenTransformer(MegatronModule):
    """Reads tokens of a video in raster order and says of each which one comes next.

    A video: `new_cache` once per process, `encode_text` (where the model attends to text) and `prefill` once
    per video, `decode` once per token. `forward` reads a whole video at once, without a cache.

    Logits are float32, for sampling, rounded to the network's dtype before: a float32 product of the last
    layer would cost more than its rounding is worth to samples at temperature 1. All ranks have them all.
    """

    def __init__(
        self,
        shape: TokenShape,
        *,
        config: TransformerConfig,
        layer: ModuleSpec,
        norm: type,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        self.shape = shape
        self.tp = pg_collection.tp
        self._fuses_steps: bool | None = None
        # Embedding and output are Megatron's own with every back end, and know one way to the meta device.
        outer = replace(config, use_cpu_initialization=True)
        self.embedding = TokenEmbedding(shape.embedding_rows, outer, pg_collection)
        self.decoder = Decoder(
            config,
            [
                build_module(layer, config=config, pg_collection=pg_collection)
                for _ in range(shape.num_layers)
            ],
            rms_norm(norm, config.hidden_size, config),
        )
        self.output_layer = column(
            ColumnParallelLinear, config.hidden_size, shape.vocab_size, outer, pg_collection
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What Megatron's dist_checkpointing loads from a NeMo checkpoint; see common/sharded.py."""
        return without_extra_states(super().sharded_state_dict(prefix, sharded_offsets, metadata))

    @property
    def fuses_steps(self) -> bool:
        """Whether `decode` runs the kernels of one_token.py; set it to False to compare."""
        return has_kernels(self.shape, self.device) if self._fuses_steps is None else self._fuses_steps

    @fuses_steps.setter
    def fuses_steps(self, fuses: bool) -> None:
        self._fuses_steps = fuses

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        return cast(Tensor, self.output_layer.weight)

    def positions(self, length: int) -> Positions:
        """Of the first tokens of a video, for this network, on its device."""
        return token_positions(self.shape, length, device=self.device, dtype=self.dtype)

    def new_cache(self, batch_size: int) -> KeyValueCache:
        """Room for whole videos, on the network's device and in its dtype."""
        if batch_size < 1:
            raise TokenTransformerError(f"A cache for {batch_size} videos: there must be one or more.")
        shape = self.shape
        return empty_cache(
            (shape.max_length, batch_size, shape.num_kv_heads // self.tp.size(), shape.head_dim),
            num_layers=shape.num_layers,
            positions=self.positions(shape.max_length),
            dtype=self.dtype,
        )

    def encode_text(self, text_BLD: Tensor) -> list[TextKeyValue]:
        """Once per video: every layer's keys and values of the text; all its positions are attended to."""
        if not self.shape.takes_text:
            raise TokenTransformerError("This network attends to no text: only a Video2World model does.")
        if text_BLD.ndim != 3 or text_BLD.shape[-1] != self.shape.text_dim:
            raise TokenTransformerError(
                f"A text of shape {tuple(text_BLD.shape)} is not [B, L, {self.shape.text_dim}]."
            )
        text_LBD = text_BLD.to(self.device, self.dtype).transpose(0, 1).contiguous()
        return [cast(Any, layer.cross_attention).encode_text(text_LBD) for layer in self.decoder]

    def forward(self, tokens_BS: Tensor, *, text: Text | None = None) -> Tensor:
        """Logits [B, S, V] of what follows each of the tokens that a video begins with; ids are int64."""
        self._check(tokens_BS, text)
        return self.predict(tokens_BS, self.positions(tokens_BS.shape[1]), text=text)

    def predict(self, tokens_BS: Tensor, positions: Positions, *, text: Text | None = None) -> Tensor:
        """`forward` without its checks, and so without waiting for the device: for training.

        positions: those of the S tokens.
        """
        hidden = self._run(
            tokens_BS,
            positions=positions,
            text=text,
            attend=lambda layer, q, k, v: attend_causally(q, k, v),
        )
        return self._logits(hidden).transpose(0, 1)

    @torch.no_grad()
    def prefill(self, tokens_BS: Tensor, cache: KeyValueCache, *, text: Text | None = None) -> Tensor:
        """Reads the tokens that a video begins with into places 0 .. S - 1; logits [B, V] of the next one.

        Attends to these tokens alone, whatever the size of the cache.
        """
        self._check(tokens_BS, text, cache)
        cache.clear()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.fill(layer, k, v)
            return attend_causally(q, k, v)

        positions = cache.positions.first(tokens_BS.shape[1])
        hidden = self._run(tokens_BS, positions=positions, text=text, attend=attend)
        return self._logits(hidden[-1:])[0]

    @torch.no_grad()
    def decode(
        self,
        tokens_B1: Tensor,
        cache: KeyValueCache,
        *,
        position: Tensor,
        bucket: int,
        text: Text | None = None,
    ) -> Tensor:
        """Reads one more token, into the place `position`; logits [B, V] of the next one.

        `position` is int64 without axes on the network's device. It must be below `bucket` (see bucket_for),
        the number of places that are looked at, and all places before it must be written: on a GPU that is
        not checked. Nothing here waits for the device or depends on a value there, so that a call can be
        recorded in a CUDA graph and repeated after changing tokens and position in place.
        """
        self._check_step(tokens_B1, cache, position=position, bucket=bucket, text=text)
        if self.fuses_steps:
            logits_BV = read_token(
                self.embedding(tokens_B1)[0],
                self.decoder,
                self.decoder.final_layernorm,
                self.output_layer,
                cache,
                position=position,
                bucket=bucket,
                eps=self.shape.norm_eps,
                ranks=self.tp.size(),
            )
            return self._whole(logits_BV[None])[0]
        bias_L = torch.zeros(bucket, device=self.device)
        bias_L.masked_fill_(cache.places[:bucket] > position, -torch.inf)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(layer, k, v, position=position)
            return attend_with_one(q, *cache.first(layer, bucket), bias_L=bias_L)

        positions = cache.positions.at(position)
        hidden = self._run(tokens_B1, positions=positions, text=text, attend=attend)
        return self._logits(hidden)[0]

    def _run(
        self, tokens_BS: Tensor, *, positions: Positions, text: Text | None, attend: AttendInLayer
    ) -> Tensor:
        """The hidden state after the last layer, [S, B, D]."""
        hidden = self.embedding(tokens_BS)
        for index, layer in enumerate(self.decoder):
            hidden = layer(
                hidden,
                positions=positions,
                text=None if text is None else text[index],
                attend=partial(attend, index),
            )
        return hidden

    def _logits(self, hidden_SBD: Tensor) -> Tensor:
        """[S, B, V] float32."""
        logits, _ = self.output_layer(self.decoder.final_layernorm(hidden_SBD))
        return self._whole(logits)

    def _whole(self, logits_SBV: Tensor) -> Tensor:
        """Of all ranks' rows of the vocabulary, float32."""
        whole_VSB = gather_tokens(logits_SBV.permute(2, 0, 1), self.tp, self.shape.vocab_size)
        return whole_VSB.permute(1, 2, 0).float().contiguous()

    def _check(self, tokens_BS: Tensor, text: Text | None, cache: KeyValueCache | None = None) -> None:
        """Of a whole beginning of a video; waits for the device."""
        if tokens_BS.ndim != 2 or tokens_BS.numel() == 0:
            raise TokenTransformerError(f"Tokens of shape {tuple(tokens_BS.shape)} are not [B, S].")
        batch, length = tokens_BS.shape
        if length > self.shape.max_length:
            raise TokenTransformerError(
                f"{length} tokens are more than a video has: {self.shape.max_length} fit into this network."
            )
        least, most = (int(value) for value in tokens_BS.aminmax())
        if least < 0 or most >= self.shape.embedding_rows:
            raise TokenTransformerError(
                f"Token ids from {least} to {most}: this network knows 0 to {self.shape.embedding_rows - 1}."
            )
        self._check_batch(batch, text, cache)

    def _check_step(
        self, tokens_B1: Tensor, cache: KeyValueCache, *, position: Tensor, bucket: int, text: Text | None
    ) -> None:
        if tokens_B1.ndim != 2 or tokens_B1.shape[1] != 1:
            raise TokenTransformerError(f"Tokens of shape {tuple(tokens_B1.shape)} are not [B, 1].")
        if position.ndim or position.dtype != torch.int64 or position.device != cache.places.device:
            raise TokenTransformerError(
                f"A position of shape {tuple(position.shape)}, {position.dtype} on {position.device}: it "
                f"must be one torch.int64 without axes on {cache.places.device}."
            )
        if not 1 <= bucket <= cache.max_length:
            raise TokenTransformerError(
                f"A bucket of {bucket} places: the cache has {cache.max_length}. Take what bucket_for says."
            )
        if position.device.type == "cpu" and not 0 <= int(position) < bucket:
            raise TokenTransformerError(
                f"Position {int(position)} does not lie in the bucket of {bucket} places, 0 to {bucket - 1}."
            )
        self._check_batch(len(tokens_B1), text, cache)

    def _check_batch(self, batch: int, text: Text | None, cache: KeyValueCache | None) -> None:
        if self.shape.takes_text and text is None:
            raise TokenTransformerError("This network attends to text: pass text=encode_text(...).")
        if not self.shape.takes_text and text is not None:
            raise TokenTransformerError("This network attends to no text: leave out text.")
        if cache is not None and cache.batch_size != batch:
            raise TokenTransformerError(
                f"{batch} videos do not fit a cache of {cache.batch_size}: call new_cache({batch})."
            )
        if text is not None and text[0].k.shape[1] != batch:
            raise TokenTransformerError(f"{batch} videos, and texts of {text[0].k.shape[1]}: one for each.")


def _check_sizes(shape: TokenShape) -> None:
    if shape.num_heads % shape.num_kv_heads:
        raise TokenTransformerError(
            f"{shape.num_heads} query heads do not divide by {shape.num_kv_heads} key and value heads."
        )
    if shape.head_dim % 2 or shape.head_dim < 6 or (shape.takes_text and shape.hidden_size % 2):
        raise TokenTransformerError(
            f"Heads of {shape.head_dim} channels, width {shape.hidden_size}: three axes of a video share "
            "pairs of them, so both must be even, and a head's 6 or more."
        )


def _check_divides(shape: TokenShape, ranks: int) -> None:
    sizes = {
        "key and value heads": shape.num_kv_heads,
        "rows of the vocabulary": shape.vocab_size,
        "rows of the embedding": shape.embedding_rows,
        "channels of the MLP": shape.ffn_hidden_size,
    }
    for what, size in sizes.items():
        if size % ranks:
            fitting = [n for n in range(1, ranks) if all(each % n == 0 for each in sizes.values())]
            raise TokenTransformerError(
                f"{size} {what} do not divide by {ranks} tensor parallel ranks: take {fitting} ranks."
            )
