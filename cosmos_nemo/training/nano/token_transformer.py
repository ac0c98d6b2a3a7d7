"""Training of a small autoregressive transformer to go on with the tokens of nano clips.

Each token of a clip but those of its first latent frame, which are always given, is predicted from those
before it. The text-free networks only.

Letters: N clips, B of a step, S tokens of a clip, V vocabulary.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_torch_dist
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.model import TokenTransformer, build_token_transformer
from cosmos_nemo.models.token_transformer.positions import Positions
from cosmos_nemo.training.nano.tokenizer_clips import to_video
from cosmos_nemo.training.nano.tokenizer_training import OnStep, Training, is_matrix, run
from cosmos_nemo.training.nano.world import Scene, draw_clips
from cosmos_nemo.training.nemo_checkpoint import CONTEXT
from cosmos_nemo.training.settings import TrainingSettings

_ENDS_OF_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")
_EMBEDDING_STD, _OUTPUT_GAIN = 0.5, 0.1
_AT_ONCE = 64
_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class TrainedTokenTransformer:
    """Weights under Megatron's names, float32 on the CPU."""

    shape: TokenShape
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """How well what is drawn is predicted from the clips' own tokens before it."""

    loss: float
    """Mean cross-entropy, in nats a token."""
    accuracy: float
    """Share 0..1 of the tokens that are the likeliest."""


@torch.no_grad()
def encoded_ids(
    scenes: Sequence[Scene], *, encode: Callable[[Tensor], Tensor], seed: int, device: torch.device
) -> Tensor:
    """Tokens in raster order, int32 [N, S] on `device`, of a clip of each of the scenes.

    encode: ids of videos -1..1, as DiscreteTokenizer makes them.
    """
    ids = []
    for start in range(0, len(scenes), _AT_ONCE):
        clips = draw_clips(scenes[start : start + _AT_ONCE], seed=seed * 1_000_003 + start, device=device)
        ids.append(encode(to_video(clips)).flatten(1).int())
    return torch.cat(ids)


def train_token_transformer(
    shape: TokenShape,
    ids_NS: Tensor,
    *,
    settings: TrainingSettings,
    seed: int,
    pg_collection: ProcessGroupCollection,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
    on_step: OnStep = lambda step, loss: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> TrainedTokenTransformer:
    """A network trained from nothing, by AdamW on the device of the clips' tokens, in float32.

    A GPU rounds the inputs of its products to TF32. Of the settings those count that any training has:
    steps, global batch, learning rate at its highest (a warm-up, then half a cosine, as for the tokenizers),
    weight decay, betas and the average's decay. state_path and what comes after: see tokenizer_training.run.
    """
    training = _training(shape, ids_NS, settings=settings, seed=seed, pg_collection=pg_collection)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run(
            training,
            settings={"shape": repr(shape), "clips": len(ids_NS), "seed": seed, "training": repr(settings)},
            state_path=state_path,
            save_every_s=save_every_s,
            on_step=on_step,
            wants_to_stop=wants_to_stop,
        )
    finally:
        torch.set_float32_matmul_precision(precision)
    weights = {name: values.cpu() for name, values in training.average.items()}
    return TrainedTokenTransformer(shape=shape, weights=weights)


def write_token_transformer(
    folder: Path,
    trained: TrainedTokenTransformer,
    *,
    model: str,
    facts: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes a NeMo checkpoint into `folder`, which is there: weights in `dtype`, and context/.

    model: the name of its card, for NeMo's load_context; facts: what context/training.json says, values of
    JSON.
    """
    tensors = {name: LazyTensor.of(values.to(dtype)) for name, values in trained.weights.items()}
    context = NeMoContext(model=model, overrides={})
    write_token_torch_dist(folder / "model", tensors, shape=trained.shape, context=context)
    for part in ("weights", CONTEXT):
        (folder / "model" / part).rename(folder / part)
    shutil.rmtree(folder / "model")
    text = json.dumps(dict(facts), indent=1) + "\n"
    (folder / CONTEXT / "training.json").write_text(text, encoding="utf-8")


@torch.no_grad()
def measure_prediction(
    trained: TrainedTokenTransformer, ids_NS: Tensor, *, pg_collection: ProcessGroupCollection
) -> Prediction:
    """Over clips' tokens [N, S], on their device."""
    network = _network(trained.shape, device=ids_NS.device, pg_collection=pg_collection)
    for name, parameter in network.named_parameters():
        parameter.copy_(trained.weights[name])
    loss, right, positions = 0.0, 0.0, _positions(network)
    for some_BS in ids_NS.long().split(_AT_ONCE):
        logits_MV, wanted_M = _predicted(network, some_BS, positions)
        loss += float(F.cross_entropy(logits_MV, wanted_M, reduction="sum"))
        right += float((logits_MV.argmax(1) == wanted_M).sum())
    count = ids_NS[:, _given(trained.shape) :].numel()
    return Prediction(loss / count, right / count)


class _Objective(nn.Module):
    """Mean cross-entropy of the tokens that are not given."""

    def __init__(self, network: TokenTransformer) -> None:
        super().__init__()
        self.network = network
        self.positions = _positions(network)

    def forward(self, ids_BS: Tensor) -> Tensor:
        return F.cross_entropy(*_predicted(self.network, ids_BS, self.positions))


def _positions(network: TokenTransformer) -> Positions:
    """Of the tokens that another one follows."""
    return network.positions(network.shape.num_video_tokens - 1)


def _predicted(network: TokenTransformer, ids_BS: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and ids [M] of all tokens behind the first latent frame."""
    given = _given(network.shape)
    logits_BSV = network.predict(ids_BS[:, :-1], positions)[:, given - 1 :]
    return logits_BSV.flatten(0, 1), ids_BS[:, given:].flatten()


def _given(shape: TokenShape) -> int:
    """Tokens of a latent frame: every prompt has as many, or more."""
    _, rows, columns = shape.latent_THW
    return rows * columns


def _training(
    shape: TokenShape,
    ids_NS: Tensor,
    *,
    settings: TrainingSettings,
    seed: int,
    pg_collection: ProcessGroupCollection,
) -> Training:
    """The training at its beginning. Which clips a step sees depends on seed and step alone."""
    assert not shape.takes_text, "a network that attends to text is not trained here"
    device = ids_NS.device
    network = _network(shape, device=device, pg_collection=pg_collection)
    initialize(network, seed=seed)

    def inputs(step: int) -> tuple[Tensor]:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
        which_B = torch.randint(len(ids_NS), (settings.global_batch_size,), generator=dice)
        return (ids_NS[which_B.to(device)].long(),)

    def optimizers_of(
        parameters: Mapping[str, Tensor], learning_rate: float
    ) -> tuple[torch.optim.Optimizer, ...]:
        """Weights of norms, and rows of the embedding that a step may not see, do not decay."""
        decays = {
            name: settings.weight_decay if is_matrix(values) and name != _EMBEDDING else 0.0
            for name, values in parameters.items()
        }
        groups = [
            {
                "params": [values for name, values in parameters.items() if decays[name] == decay],
                "weight_decay": decay,
            }
            for decay in dict.fromkeys(decays.values())
        ]
        return (
            torch.optim.AdamW(
                groups, lr=learning_rate, betas=settings.adam_betas, fused=device.type == "cuda"
            ),
        )

    return Training(
        network,
        _Objective(network),
        inputs,
        learning_rate=settings.learning_rate,
        num_steps=settings.num_steps,
        uses_graphs=False,
        optimizers_of=optimizers_of,
        average_decay=settings.average_decay,
    )


def _network(
    shape: TokenShape, *, device: torch.device, pg_collection: ProcessGroupCollection
) -> TokenTransformer:
    return build_token_transformer(
        shape, backend=torch_backend(), pg_collection=pg_collection, device=device, dtype=torch.float32
    )


@torch.no_grad()
def initialize(network: TokenTransformer, *, seed: int) -> None:
    """Random weights that keep the variance; what is added to the residual, and the logits, starts small."""
    dice = torch.Generator().manual_seed(seed)
    assert token_parameter_shapes(network.shape).keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:  # the only vectors are the weights of norms
            parameter.fill_(1)
            continue
        scale = _EMBEDDING_STD if name == _EMBEDDING else parameter.shape[1] ** -0.5
        if name.endswith(_ENDS_OF_RESIDUAL):
            scale /= math.sqrt(2 * network.shape.num_layers)
        elif name == "output_layer.weight":
            scale *= _OUTPUT_GAIN
        parameter.copy_(scale * torch.randn(parameter.shape, generator=dice))


def training_facts(settings: TrainingSettings, prediction: Prediction) -> dict[str, Any]:
    """For write_token_transformer: what a training was asked for and what it reached."""
    names = ("num_steps", "global_batch_size", "learning_rate", "weight_decay", "adam_betas", "average_decay")
    chosen = asdict(settings)
    return {"settings": {name: chosen[name] for name in names}, "held_out": asdict(prediction)}
