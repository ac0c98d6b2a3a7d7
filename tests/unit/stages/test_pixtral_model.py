from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.pixtral_names import pixtral_shapes
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.writer.pixtral import pixtral_tensors
from cosmos_nemo.stages.language_model import answer_tokens
from cosmos_nemo.stages.pixtral_model import build_pixtral, pixtral_config

SHAPE = LanguageShape(
    num_layers=2,
    hidden_size=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=40,
    vocab_size=50,
    rope_theta=1e9,
)
VISION = VisionShape(
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    ffn_hidden_size=28,
    patch_size=4,
    max_image_size=32,
    rope_theta=30.0,
)
CPU = torch.device("cpu")
IMAGE, BREAK, END = 5, 6, 2
ROWS, COLUMNS = 3, 5
# Three rows of five patches, between other tokens.
PROMPT = [1, 3, *([IMAGE] * COLUMNS + [BREAK]) * ROWS, 20, 21, 4]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def drawn(name: str, size: tuple[int, ...]) -> Tensor:
        values = torch.randn(size, generator=draw)
        if len(size) == 1:
            return values * 0.3 + (not name.endswith("bias"))
        return values if "embed" in name else values * 2 * torch.Size(size[1:]).numel() ** -0.5

    return {name: drawn(name, size) for name, size in pixtral_shapes(SHAPE, VISION).items()}


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("pixtral")
    tensors = pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout="mistral")
    save_file(tensors, folder / "consolidated.safetensors")
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> nn.Module:
    return built(checkpoint)


@pytest.fixture(scope="module")
def pixels_1CHW() -> Tensor:
    return torch.randn(1, 3, 4 * ROWS, 4 * COLUMNS, generator=torch.Generator().manual_seed(1))


def built(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_pixtral(SHAPE, VISION, checkpoint=checkpoint, image_token=IMAGE, device=CPU, dtype=dtype)


def logits_LV(model: Any, pixels_1CHW: Tensor) -> Tensor:
    pixels = pixels_1CHW.to(model.dtype)
    return model(torch.tensor([PROMPT]), pixel_values=pixels).logits[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_the_one_transformers_would_build(
    dtype: torch.dtype, weights: dict[str, Tensor], checkpoint: Checkpoint, pixels_1CHW: Tensor
) -> None:
    from transformers import LlavaForConditionalGeneration

    theirs = LlavaForConditionalGeneration._from_config(
        pixtral_config(SHAPE, VISION, image_token=IMAGE), dtype=dtype
    ).eval()
    theirs.load_state_dict(weights)
    ours = built(checkpoint, dtype)
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):
        expected, found = dict(of(theirs)), dict(of(ours))
        assert found.keys() == expected.keys() and found
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    assert torch.equal(logits_LV(ours, pixels_1CHW), logits_LV(theirs, pixels_1CHW))
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


def test_every_part_attends_by_one_kernel_and_the_head_is_its_own(model: Any) -> None:
    parts = (model, model.model.vision_tower, model.model.language_model)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    assert model.lm_head.weight.data_ptr() != model.model.language_model.embed_tokens.weight.data_ptr()


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def block(x: Tensor, w: dict[str, Tensor], turn: Tensor, heads: int, *, causal: bool) -> Tensor:
    """Mistral's layer, over its own names: neighbours in a head turn as one complex number."""
    length, head = len(x), 8

    def rotated(y: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(y.reshape(length, -1, head // 2, 2)) * turn).flatten(
            -2
        )

    h = rms(x, w["attention_norm.weight"])
    q, k = (rotated(h @ w[f"attention.w{each}.weight"].T) for each in "qk")
    v = (h @ w["attention.wv.weight"].T).reshape(length, -1, head)
    k, v = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (k, v))
    scores = torch.einsum("qnd,knd->nqk", q, k) / head**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    x = x + torch.einsum("nqk,knd->qnd", scores.softmax(-1), v).flatten(1) @ w["attention.wo.weight"].T
    h = rms(x, w["ffn_norm.weight"])
    gate = nn.functional.silu(h @ w["feed_forward.w1.weight"].T)
    return x + (gate * (h @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def turns(angles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def native_features(native: dict[str, Tensor], pixels_CHW: Tensor) -> Tensor:
    """The released tower and adapter written down plainly: [patches, language width], row by row."""
    tower = below(native, "vision_encoder.")
    patches = pixels_CHW.unfold(1, 4, 4).unfold(2, 4, 4)  # C, rows, columns, y, x
    x = torch.einsum("crwij,dcij->rwd", patches, tower["patch_conv.weight"]).flatten(0, 1)
    x = rms(x, tower["ln_pre.weight"])
    # Of a head's four angles, two turn with the row and two with the column.
    speeds = VISION.rope_theta ** (-torch.arange(0, 8, 2) / 8)
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    angles = torch.cat(
        [torch.outer(rows.flatten(), speeds[0::2]), torch.outer(columns.flatten(), speeds[1::2])], dim=-1
    )
    for i in range(VISION.num_layers):
        x = block(x, below(tower, f"transformer.layers.{i}."), turns(angles), 2, causal=False)
    adapter = below(native, "vision_language_adapter.")
    x = nn.functional.gelu(x @ adapter["w_in.weight"].T + adapter["w_in.bias"])
    return x @ adapter["w_out.weight"].T + adapter["w_out.bias"]


def native_logits(native: dict[str, Tensor], pixels_CHW: Tensor) -> Tensor:
    tokens = torch.tensor(PROMPT)
    x = native["tok_embeddings.weight"][tokens]
    x[tokens == IMAGE] = native_features(native, pixels_CHW)
    angles = torch.outer(torch.arange(len(PROMPT)), SHAPE.rope_theta ** (-torch.arange(0, 8, 2) / 8))
    for i in range(SHAPE.num_layers):
        x = block(x, below(native, f"layers.{i}."), turns(angles), SHAPE.num_heads, causal=True)
    return rms(x, native["norm.weight"]) @ native["output.weight"].T


def test_a_file_of_mistrals_names_makes_the_logits_of_mistrals_network(
    checkpoint: Checkpoint, model: nn.Module, pixels_1CHW: Tensor
) -> None:
    native = {name: checkpoint.read(name).clone() for name in checkpoint.names()}
    expected = native_logits(native, pixels_1CHW[0])
    torch.testing.assert_close(logits_LV(model, pixels_1CHW), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.5


def test_nothing_is_allocated_for_a_file_that_does_not_fit(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout="mistral")
    del tensors["vision_encoder.ln_pre.weight"]
    save_file(tensors, tmp_path / "consolidated.safetensors")
    monkeypatch.setattr("cosmos_nemo.stages.pixtral_model.empty_on_device", None)
    with pytest.raises(CheckpointError, match=r"missing, first: vision_encoder\.ln_pre\.weight"):
        built(open_checkpoint(tmp_path))


def answer(model: nn.Module, pixels_1CHW: Tensor, **options: Any) -> list[int]:
    defaults = {"num_tokens": 8, "end_token": END, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    return answer_tokens(model, PROMPT, pixels_1CHW=pixels_1CHW, **defaults | options)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(
    model: nn.Module, pixels_1CHW: Tensor
) -> None:
    assert answer(model, pixels_1CHW, seed=1) == answer(model, pixels_1CHW, seed=1)
    assert len({tuple(answer(model, pixels_1CHW, seed=seed)) for seed in range(5)}) > 1


def test_drawing_leaves_the_global_random_state_alone(model: nn.Module, pixels_1CHW: Tensor) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = answer(model, pixels_1CHW)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert answer(model, pixels_1CHW) == first


def likeliest(model: Any, pixels_1CHW: Tensor, num_tokens: int) -> list[int]:
    """Without any memory of earlier tokens."""
    tokens = list(PROMPT)
    for _ in range(num_tokens):
        logits_1LV = model(torch.tensor([tokens]), pixel_values=pixels_1CHW).logits
        tokens.append(int(logits_1LV[0, -1].argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("options", [{"temperature": 1e-4}, {"temperature": 2.0, "top_p": 1e-3}])
def test_a_low_temperature_or_a_small_share_takes_the_likeliest_token(
    options: dict[str, float], model: nn.Module, pixels_1CHW: Tensor
) -> None:
    expected = likeliest(model, pixels_1CHW, 6)
    assert END not in expected and IMAGE not in expected
    assert answer(model, pixels_1CHW, num_tokens=6, **options) == expected
    assert answer(model, pixels_1CHW, num_tokens=6, temperature=2.0) != expected


def test_only_the_likeliest_tokens_that_make_up_the_share_are_drawn(
    model: nn.Module, pixels_1CHW: Tensor
) -> None:
    odds, tokens = (logits_LV(model, pixels_1CHW)[-1] / 3).softmax(-1).sort(descending=True)
    share = float(odds[:3].sum()) - 1e-3
    drawn = {
        answer(model, pixels_1CHW, num_tokens=1, temperature=3.0, top_p=share, seed=seed)[0]
        for seed in range(60)
    }
    assert drawn == set(tokens[:3].tolist())


def test_another_image_has_another_answer(model: nn.Module, pixels_1CHW: Tensor) -> None:
    answers = {tuple(answer(model, image, temperature=1e-4)) for image in (pixels_1CHW, -pixels_1CHW)}
    assert len(answers) == 2


def test_the_image_is_looked_at_once_and_earlier_tokens_are_not_computed_again(
    model: Any, pixels_1CHW: Tensor
) -> None:
    looks, lengths, made = [], [], []
    hooks = [
        model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1)),
        model.model.language_model.layers[0].register_forward_pre_hook(
            lambda _, x: lengths.append(x[0].shape[1])
        ),
        model.lm_head.register_forward_hook(lambda _, __, logits: made.append(logits.shape[1])),
    ]
    try:
        drawn = answer(model, pixels_1CHW, num_tokens=4)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(looks) == 1 and len(drawn) > 1
    assert lengths == [len(PROMPT)] + [1] * (len(drawn) - 1)
    assert made == [1] * len(drawn)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.multi_modal_projector.linear_2.bias"])
def test_logits_that_are_not_finite_are_an_error(
    name: str, checkpoint: Checkpoint, pixels_1CHW: Tensor
) -> None:
    broken = built(checkpoint)
    dict(broken.named_parameters())[name].view(-1)[3] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        answer(broken, pixels_1CHW)
