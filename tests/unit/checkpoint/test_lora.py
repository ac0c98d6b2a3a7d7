import pytest
import torch

from cosmos_nemo.checkpoint.lora import merge_lora
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

RANK, BLOCKS = 3, (0, 1)
LINEARS = tuple(
    f"net.blocks.block{i}.blocks.{part}.block.attn.to_{linear}"
    for i in BLOCKS
    for part in (0, 1)
    for linear in "qv"
)


def lora_of(tensors, linears=LINEARS, seed=0):
    """Down and up matrices, as post-training adds them, for these linears of Predict1's names."""
    draw = torch.Generator().manual_seed(seed)
    matrices = {}
    for linear in linears:
        rows, columns = tensors[f"{linear}.0.weight"].shape
        matrices[f"{linear}_lora.net.0.weight"] = torch.randn(RANK, columns, generator=draw) / columns**0.5
        matrices[f"{linear}_lora.net.1.weight"] = torch.randn(rows, RANK, generator=draw)
    return matrices


def saved(path, tensors):
    torch.save(tensors, path)
    return open_checkpoint(path)


@pytest.fixture
def lora(predict1):
    return lora_of(predict1)


def test_a_merged_projection_does_what_the_weight_and_the_two_matrices_do(tmp_path, predict1, lora):
    merged = merge_lora(saved(tmp_path / "model.pt", {"model": predict1 | lora}))
    for linear in LINEARS:
        weight = predict1[f"{linear}.0.weight"]
        x = torch.randn(5, weight.shape[1], dtype=weight.dtype)
        down, up = (lora[f"{linear}_lora.net.{part}.weight"] for part in (0, 1))
        expected = x @ weight.T + (x @ down.T) @ up.T
        torch.testing.assert_close(x @ merged.read(f"{linear}.0.weight").T, expected, atol=1e-5, rtol=1e-5)
        assert (expected - x @ weight.T).abs().max() > 0.1


def test_only_the_linears_with_matrices_change_and_the_matrices_are_gone(tmp_path, predict1, lora):
    merged = merge_lora(saved(tmp_path / "model.pt", predict1 | lora))
    assert set(merged.names()) == set(predict1)
    changed = {name for name in predict1 if not torch.equal(merged.read(name), predict1[name])}
    assert changed == {f"{linear}.0.weight" for linear in LINEARS}


def test_a_part_of_a_merged_tensor_is_that_part_of_the_whole(tmp_path, predict1, lora):
    merged = merge_lora(saved(tmp_path / "model.pt", predict1 | lora))
    name = f"{LINEARS[1]}.0.weight"
    index = (slice(5, 17), slice(2, 9))
    torch.testing.assert_close(merged.read(name, index), merged.read(name)[index])
    assert merged.read(name, index[:1]).shape == (12, predict1[name].shape[1])


def test_the_scale_multiplies_the_change(tmp_path, predict1, lora):
    checkpoint = saved(tmp_path / "model.pt", predict1 | lora)
    name = f"{LINEARS[0]}.0.weight"
    once, twice = (merge_lora(checkpoint, scale=scale).read(name) - predict1[name] for scale in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, atol=1e-6, rtol=1e-5)


def test_the_dtype_is_that_of_the_weight(tmp_path, predict1, lora):
    halved = {name: tensor.bfloat16() for name, tensor in predict1.items()}
    merged = merge_lora(saved(tmp_path / "model.pt", halved | lora))
    name = f"{LINEARS[0]}.0.weight"
    down, up = (lora[f"{LINEARS[0]}_lora.net.{part}.weight"] for part in (0, 1))
    assert merged.dtype(name) == merged.read(name).dtype == torch.bfloat16
    assert torch.equal(merged.read(name), (halved[name].float() + up @ down).bfloat16())


def test_the_averaged_matrices_are_merged_where_the_file_has_them(tmp_path, predict1, lora):
    averaged = lora_of(predict1, seed=1)
    content = {"model": predict1 | lora, "ema": {n.replace(".", "-"): t for n, t in averaged.items()}}
    both = merge_lora(saved(tmp_path / "both.pt", content))
    alone = merge_lora(saved(tmp_path / "alone.pt", predict1 | averaged))
    assert all(torch.equal(both.read(name), alone.read(name)) for name in predict1)


def test_the_network_reads_a_merged_checkpoint(tmp_path, predict1, lora, shape):
    plain = saved(tmp_path / "plain.pt", predict1)
    whole = saved(tmp_path / "model.pt", predict1 | lora)
    with pytest.raises(CheckpointError, match="belong to another network"):
        network_rules(shape, whole)
    merged = merge_lora(whole)
    rules = network_rules(shape, merged)
    changed = {name for name, rule in rules.items() if not torch.equal(rule.read(merged), rule.read(plain))}
    attention = ("full_self_attention.linear_qkv", "cross_attention.linear_q", "cross_attention.linear_kv")
    assert changed == {f"decoder.layers.{i}.{linear}.weight" for i in BLOCKS for linear in attention}


def test_a_checkpoint_without_matrices_is_returned_itself(tmp_path, predict1):
    checkpoint = saved(tmp_path / "model.pt", predict1)
    assert merge_lora(checkpoint) is checkpoint


@pytest.mark.parametrize("lost", ["_lora.net.0.weight", "_lora.net.1.weight", ".0.weight"])
def test_matrices_that_miss_a_partner_are_an_error_that_names_it(lost, tmp_path, predict1, lora):
    tensors = predict1 | lora
    del tensors[LINEARS[2] + lost]
    with pytest.raises(CheckpointError, match=rf"lacks {LINEARS[2] + lost}"):
        merge_lora(saved(tmp_path / "model.pt", tensors))


@pytest.mark.parametrize("part", [0, 1])
def test_matrices_of_another_size_are_an_error(part, tmp_path, predict1, lora):
    name = f"{LINEARS[0]}_lora.net.{part}.weight"
    lora = lora | {name: lora[name].repeat(2, 2)}
    with pytest.raises(CheckpointError, match="do not fit its weight"):
        merge_lora(saved(tmp_path / "model.pt", predict1 | lora))
