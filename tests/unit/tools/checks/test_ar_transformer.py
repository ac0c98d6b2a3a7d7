"""The check itself: what it makes of another file, and that wrong numbers and constants fail."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import Checkpoint, LazyTensor
from cosmos_nemo.checkpoint.token_formats import Stored, TokenFormat, token_rules_for
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_torch_dist
from cosmos_nemo.tools import main
from cosmos_nemo.tools.checks.ar_transformer import shape_of
from tests.tiny_tokens import random_weights

GOLDEN = Path(__file__).parents[3] / "golden" / "predict1_ar_transformer_crossattn.safetensors"
MODEL: dict[str, Any] = {
    "norm_type": "rmsnorm",
    "norm_eps": 1e-5,
    "rope_theta": 500000,
    "use_qk_normalization": True,
    "rope_dim": "3D",
    "pytorch_rope_version": "v2",
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 128,
    "ffn_hidden_size": 96,
    "video_latent_shape": [3, 2, 4],
}
YARN = {
    "apply_yarn": True,
    "yarn_beta_fast": 4,
    "yarn_beta_slow": 1,
    "yarn_scale": 2,
    "original_latent_shape": [3, 2, 4],
}
BASE = TokenShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_hidden_size=96,
    vocab_size=128,
    latent_THW=(3, 2, 4),
    text_length=0,
)


def case(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL | changes, "training_type": "video_to_video"}


def copied(tmp_path: Path, **changes: Any) -> Path:
    """The golden file with another .json beside it."""
    path = tmp_path / GOLDEN.name
    shutil.copy(GOLDEN, path)
    facts = json.loads(GOLDEN.with_suffix(".json").read_text())
    facts["model"] |= changes
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def failed(capsys: pytest.CaptureFixture[str]) -> set[str]:
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[1] for line in lines if not line.endswith("  ok")}


def test_sizes_come_from_the_file() -> None:
    assert shape_of(case(), {}) == BASE
    wide = shape_of(case(head_dim=20, n_kv_heads=None), {})
    assert (wide.head_dim, wide.num_kv_heads) == (20, 4)
    scaled = shape_of(case(**YARN), {})
    assert (scaled.rope_scale, scaled.rope_original_THW) == (2.0, (3, 2, 4))
    assert (scaled.rope_beta_fast, scaled.rope_beta_slow) == (4.0, 1.0)
    text = shape_of(
        case(insert_cross_attn=True, apply_abs_pos_emb=True, context_dim=24)
        | {"training_type": "text_to_video"},
        {"inputs.context": torch.zeros(1, 7, 24)},
    )
    assert (text.text_dim, text.text_length) == (24, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_type": "layernorm"},
        {"rope_dim": "1D"},
        {"use_qk_normalization": False},
        {"pytorch_rope_version": "v1"},
        {"apply_abs_pos_emb": True},
        {"insert_cross_attn": True, "apply_abs_pos_emb": True, "insert_cross_attn_every_k_layers": 2},
    ],
)
def test_a_network_of_another_kind_is_not_taken_for_this_one(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="such a network is not built"):
        shape_of(case(**changes), {})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"norm_eps": 1e-2}, {"logits"}),
        ({"rope_theta": 10000}, {"logits", "rope_cos", "rope_sin", "rope_temporal_inv_freq"}),
        (YARN, {"logits", "rope_cos", "rope_spatial_inv_freq", "rope_temporal_inv_freq"}),
        ({"video_latent_shape": [3, 4, 3]}, {"logits", "rope_cos", "abs_pos_emb"}),
    ],
)
def test_another_constant_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], found: set[str]
) -> None:
    assert main.main(["verify", str(copied(tmp_path, **changes))]) == 1
    assert found <= failed(capsys)


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("layers.1.attention.wk.weight", {"hidden_after_layer_0", "layer0_cache_k"}),
        ("layers.2.cross_attention.wv.weight", {"hidden_after_layer_1"}),
        ("output.weight", {"hidden_after_layer_2"}),
    ],
)
def test_a_changed_weight_fails_from_its_layer_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, spared: set[str]
) -> None:
    path = copied(tmp_path)
    tensors = load_file(path)
    tensors[f"weights.{name}"][0] += 0.5
    save_file(tensors, path)
    assert main.main(["verify", str(path)]) == 1
    wrong = failed(capsys)
    assert "logits" in wrong and not spared & wrong


def test_another_prompt_or_token_fails_the_greedy_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(tmp_path)
    tensors = load_file(path)
    tensors["outputs.greedy_tokens"][0, -1] += 1
    save_file(tensors, path)
    assert main.main(["verify", str(path)]) == 1
    assert failed(capsys) == {"greedy_tokens"}


def test_a_nemo_folder_of_the_same_weights_gives_the_same_numbers(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN)
    facts = json.loads(GOLDEN.with_suffix(".json").read_text())
    shape = shape_of(facts, tensors)
    rules = token_rules_for(shape, Stored(TokenFormat.RELEASED, "weights."))

    file = Checkpoint(GOLDEN, layout="safetensors", tensors={n: LazyTensor.of(t) for n, t in tensors.items()})
    weights = {name: LazyTensor.of(rule.read(file)) for name, rule in rules.items()}
    write_token_torch_dist(tmp_path / "nemo", weights, shape=shape)
    assert main.main(["verify", str(GOLDEN), "--weights", str(tmp_path / "nemo")]) == 0


def test_weights_of_another_model_exit_2_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = TokenShape(
        num_layers=1,
        hidden_size=12,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        ffn_hidden_size=8,
        vocab_size=64,
    )
    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(shape).items()}
    write_token_torch_dist(tmp_path / "nemo", lazy, shape=shape)
    assert main.main(["verify", str(GOLDEN), "--weights", str(tmp_path / "nemo")]) == 2
    assert "nemo" in capsys.readouterr().err
