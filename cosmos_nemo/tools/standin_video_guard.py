"""A video guard of random weights and nano size, in the layout of nvidia/Cosmos-Guardrail1."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.models.face_detector.model import FaceDetector, FaceDetectorShape
from cosmos_nemo.stages.guardrail.content_filter import (
    CLASSES,
    CLASSIFIER_FILE,
    SAFE,
    SafetyClassifier,
)
from cosmos_nemo.stages.guardrail.content_filter import FOLDER as CONTENT_FILTER
from cosmos_nemo.stages.guardrail.face_blur import DETECTOR_FILE
from cosmos_nemo.stages.guardrail.face_blur import FOLDER as FACE_BLUR
from cosmos_nemo.stages.guardrail.siglip import CACHE_NAME, REPOSITORY

_WIDTH, _WIDE, _NUM_LAYERS, _NUM_HEADS = 16, 32, 2, 2
_IMAGE, _PATCH = 32, 8
_NUM_WORDS, _TEXT_LENGTH = 32, 8
_CLASSIFIER_WIDTHS = (_WIDTH, 16, 8)
_DETECTOR = FaceDetectorShape(stem=8, widths=(2, 4, 8, 16), pyramid=16)
_LANDMARK_NUMBERS = 10
_CERTAIN = 8.0
"""A bias that random features do not outweigh: a probability of 0.9997 or more."""
_LEVEL_SPREAD = 70.0
"""About the standard deviation of a picture's levels 0..255."""


def write_video_guard(folder: Path, *, seed: int, blocks: bool = False, finds_face: bool = False) -> None:
    """Writes video_content_safety_filter/ and face_blur_filter/ into `folder`, made if need be.

    It finds every frame Safe and without a face; with `blocks` every frame is Violence, with `finds_face` a
    frame is full of faces of 64 pixels. The same seed writes the same bytes.
    """
    draw = torch.Generator().manual_seed(seed)
    content, faces = folder / CONTENT_FILTER, folder / FACE_BLUR
    content.mkdir(parents=True, exist_ok=True)
    faces.mkdir(parents=True, exist_ok=True)
    _write_siglip(content / CACHE_NAME, draw, seed=seed)
    verdict = CLASSES.index("Violence") if blocks else SAFE
    torch.save({"model": _classifier(draw, verdict=verdict)}, content / CLASSIFIER_FILE)
    torch.save(_detector(draw, finds_face=finds_face), faces / DETECTOR_FILE)


def _write_siglip(repository: Path, draw: torch.Generator, *, seed: int) -> None:
    from safetensors.torch import save

    commit = hashlib.sha1(f"stand-in {REPOSITORY} {seed}".encode()).hexdigest()
    snapshot, reference = repository / "snapshots" / commit, repository / "refs" / "main"
    snapshot.mkdir(parents=True, exist_ok=True)
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(commit)
    _write_json(snapshot / "config.json", _siglip_config())
    _write_json(snapshot / "preprocessor_config.json", _preparation())
    # Not save_file, whose files only their owner may read.
    weights = dict(_siglip_weights(draw))
    (snapshot / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))


def _siglip_config() -> dict[str, Any]:
    sizes = {
        "hidden_size": _WIDTH,
        "intermediate_size": _WIDE,
        "num_hidden_layers": _NUM_LAYERS,
        "num_attention_heads": _NUM_HEADS,
    }
    text = {"vocab_size": _NUM_WORDS, "max_position_embeddings": _TEXT_LENGTH}
    vision = {"image_size": _IMAGE, "patch_size": _PATCH}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **sizes, **text},
        "vision_config": {"model_type": "siglip_vision_model", **sizes, **vision},
    }


def _preparation() -> dict[str, Any]:
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "do_resize": True,
        "size": {"height": _IMAGE, "width": _IMAGE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


def _siglip_weights(draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Both encoders, as in the released file, though the guard reads the one for pictures only."""
    vision, text = "vision_model.", "text_model."
    yield f"{vision}embeddings.patch_embedding.weight", _normal(draw, _WIDTH, 3, _PATCH, _PATCH)
    yield f"{vision}embeddings.patch_embedding.bias", torch.zeros(_WIDTH)
    yield f"{vision}embeddings.position_embedding.weight", _normal(draw, (_IMAGE // _PATCH) ** 2, _WIDTH)
    yield from _siglip_layers(f"{vision}encoder.", draw)
    yield from _norm(f"{vision}post_layernorm").items()
    yield f"{vision}head.probe", _normal(draw, 1, 1, _WIDTH)
    yield f"{vision}head.attention.in_proj_weight", _normal(draw, 3 * _WIDTH, _WIDTH)
    yield f"{vision}head.attention.in_proj_bias", torch.zeros(3 * _WIDTH)
    yield from _linear(f"{vision}head.attention.out_proj", draw, _WIDTH, _WIDTH).items()
    yield from _norm(f"{vision}head.layernorm").items()
    yield from _linear(f"{vision}head.mlp.fc1", draw, _WIDE, _WIDTH).items()
    yield from _linear(f"{vision}head.mlp.fc2", draw, _WIDTH, _WIDE).items()
    yield f"{text}embeddings.token_embedding.weight", _normal(draw, _NUM_WORDS, _WIDTH)
    yield f"{text}embeddings.position_embedding.weight", _normal(draw, _TEXT_LENGTH, _WIDTH)
    yield from _siglip_layers(f"{text}encoder.", draw)
    yield from _norm(f"{text}final_layer_norm").items()
    yield from _linear(f"{text}head", draw, _WIDTH, _WIDTH).items()
    yield "logit_scale", torch.zeros(1)
    yield "logit_bias", torch.zeros(1)


def _siglip_layers(encoder: str, draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for layer in (f"{encoder}layers.{i}." for i in range(_NUM_LAYERS)):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}self_attn.{projection}", draw, _WIDTH, _WIDTH).items()
        yield from _norm(f"{layer}layer_norm1").items()
        yield from _linear(f"{layer}mlp.fc1", draw, _WIDE, _WIDTH).items()
        yield from _linear(f"{layer}mlp.fc2", draw, _WIDTH, _WIDE).items()
        yield from _norm(f"{layer}layer_norm2").items()


def _classifier(draw: torch.Generator, *, verdict: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = SafetyClassifier(_CLASSIFIER_WIDTHS).state_dict()
    weights = {name: _random(name, tensor, draw) for name, tensor in names.items()}
    weights["network.layers.6.bias"][verdict] = _CERTAIN
    return weights


def _detector(draw: torch.Generator, *, finds_face: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = FaceDetector(_DETECTOR).state_dict()
    weights = {name: _random(name, tensor, draw) for name, tensor in names.items()}
    # Levels go in, and 16 residual blocks are added up: without this the numbers would grow to thousands.
    weights["body.bn1.running_var"].fill_(_LEVEL_SPREAD**2)
    for name in weights:
        if name.endswith("bn3.weight"):
            weights[name].mul_(0.3)
        elif name.startswith(("ClassHead", "BboxHead")):
            weights[name].mul_(0.1)
    for level in range(3):
        # Two boxes a cell, each with a logit for background and one for a face.
        no_face, face = [_CERTAIN, -_CERTAIN], [-_CERTAIN, _CERTAIN]
        bias = [*(face if finds_face and level == 1 else no_face), *no_face]
        weights[f"ClassHead.{level}.conv1x1.bias"] = torch.tensor(bias)
        channels, outputs = _DETECTOR.pyramid, 2 * _LANDMARK_NUMBERS
        weights |= _linear(f"LandmarkHead.{level}.conv1x1", draw, outputs, channels, 1, 1)
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def _random(name: str, like: Tensor, draw: torch.Generator) -> Tensor:
    """A tensor of a network before training: its activations keep their spread."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if like.ndim > 1:
        return math.sqrt(2) * _normal(draw, *like.shape)
    return torch.ones(like.shape) if name.endswith(("running_var", ".weight")) else torch.zeros(like.shape)


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw) / math.sqrt(math.prod(shape[1:]))


def _linear(name: str, draw: torch.Generator, *shape: int) -> dict[str, Tensor]:
    return {f"{name}.weight": _normal(draw, *shape), f"{name}.bias": torch.zeros(shape[0])}


def _norm(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(_WIDTH), f"{name}.bias": torch.zeros(_WIDTH)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
