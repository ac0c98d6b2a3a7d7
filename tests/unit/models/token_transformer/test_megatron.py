"""The same arithmetic as Megatron's own GPTModel, and the same names in memory and in a NeMo checkpoint."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_torch_dist
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.positions import rotary_angles
from cosmos_nemo.models.token_transformer.spec import transformer_config
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU
from tests.tiny_tokens import BASE, SCALED, decode_all, random_tokens, random_weights, tiny_transformer


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _environment_is_left_as_it_was() -> Iterator[None]:
    """GPTModel sets Transformer Engine's variables, which processes of other tests must not see."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(autouse=True)
def _megatron_runs_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention allocates on the current GPU, and forks random states for a dropout that it lacks."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: CPU)
    monkeypatch.setattr(CudaRNGStatesTracker, "fork", lambda self: nullcontext())


class AngleTable(nn.Module):
    """What GPTModel asks for angles; its attention takes the rows of the tokens at hand from the table."""

    def __init__(self, shape: TokenShape) -> None:
        super().__init__()
        self.angles_S11K = rotary_angles(shape, shape.num_video_tokens)[:, None, None]

    def get_rotary_seq_len(self, *_: object, **__: object) -> int:
        return len(self.angles_S11K)

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.angles_S11K


def megatrons(shape: TokenShape) -> GPTModel:
    """Unfilled."""
    groups = start_alone(CPU).collection
    config = transformer_config(shape, backend=torch_backend(), pg_collection=groups, dtype=torch.float32)
    config.apply_rope_fusion = config.masked_softmax_fusion = False
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.num_video_tokens,
        position_embedding_type="rope",
        rotary_base=int(shape.rope_theta),
    )
    model.rotary_pos_emb = AngleTable(shape)
    return model.requires_grad_(False).eval()


def run(model: GPTModel, tokens_BS: Tensor, *, start: int = 0, context: object = None) -> Tensor:
    """Logits [B, S, V]."""
    length = tokens_BS.shape[1]
    places = torch.arange(start, start + length)[None].expand_as(tokens_BS)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    return model(tokens_BS, places, mask, inference_context=context, runtime_gather_output=True)


@pytest.mark.parametrize("shape", [BASE, SCALED], ids=["base", "scaled"])
def test_megatrons_gpt_model_takes_our_parameters_by_name_and_makes_the_same_logits(
    shape: TokenShape,
) -> None:
    ours, theirs, tokens = tiny_transformer(shape), megatrons(shape), random_tokens(shape, batch=2)
    assert {name for name, _ in theirs.named_parameters()} == {name for name, _ in ours.named_parameters()}
    theirs.load_state_dict(random_weights(shape), strict=False)
    expected = run(theirs, tokens)
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.5


@pytest.mark.parametrize("shape", [BASE, SCALED], ids=["base", "scaled"])
def test_decoding_makes_the_logits_of_megatrons_static_cache(shape: TokenShape) -> None:
    ours, theirs, tokens = tiny_transformer(shape), megatrons(shape), random_tokens(shape)
    theirs.load_state_dict(random_weights(shape), strict=False)
    context, prompt = StaticInferenceContext(1, shape.num_video_tokens), 9
    expected = [run(theirs, tokens[:, :prompt], context=context)[:, -1]]
    context.enable_decode_mode()
    context.sequence_len_offset = prompt
    for place in range(prompt, tokens.shape[1]):
        expected.append(run(theirs, tokens[:, place : place + 1], start=place, context=context)[:, -1])
        context.sequence_len_offset += 1
    found = decode_all(ours, tokens, prompt=prompt)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=0, atol=2e-5)


def test_megatron_loads_the_nemo_checkpoint_that_we_write(tmp_path: Path) -> None:
    """Its layers are stacked, and its norms lie in the linears after them, as NeMo's own have them."""
    weights, theirs = random_weights(SCALED), megatrons(SCALED)
    lazy = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    write_token_torch_dist(tmp_path / "nemo", lazy, shape=SCALED)
    for parameter in theirs.parameters():
        parameter.fill_(torch.nan)
    state = theirs.sharded_state_dict(prefix="module.")
    wanted = {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}
    loaded = dist_checkpointing.load(wanted, str(tmp_path / "nemo" / "weights"))
    for name, tensor in weights.items():
        assert torch.equal(loaded[f"module.{name}"], tensor), name
    assert len(loaded) == len(weights)
