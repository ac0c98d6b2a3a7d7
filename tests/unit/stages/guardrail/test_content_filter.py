import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.guardrail.content_filter import (
    CLASSES,
    CLASSIFIER_FILE,
    FOLDER,
    ContentFilter,
    build_content_filter,
    check_content_filter,
)
from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable
from cosmos_nemo.stages.guardrail.siglip import encode
from cosmos_nemo.tools.standin_video_guard import write_video_guard

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guardrail")
    write_video_guard(folder, seed=0)
    return folder / FOLDER


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "content"))


def load(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / CLASSIFIER_FILE, weights_only=True)["model"]


def save(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"model": weights}, folder / CLASSIFIER_FILE)


def build(folder: Path) -> ContentFilter:
    check_content_filter(folder)
    return build_content_filter(folder, device=CPU, dtype=torch.float32)


def frames(count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 40, 56, 3), generator=draw, dtype=torch.uint8)


def train(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and statistics that are all different, and verdicts that depend on the frame."""
    draw = torch.Generator().manual_seed(3)
    trained = {}
    for name, tensor in weights.items():
        values = torch.randn(tensor.shape, generator=draw)
        if name.endswith("num_batches_tracked"):
            trained[name] = torch.tensor(5)
        elif name.endswith("running_var"):
            trained[name] = 0.01 + 0.01 * values.abs()
        else:
            trained[name] = values
    return trained


def by_hand(weights: dict[str, Tensor], features: Tensor) -> Tensor:
    """The classifier as upstream defines it: linear, norm, ReLU twice, and a last linear."""
    w = {name.removeprefix("network.layers."): tensor for name, tensor in weights.items()}
    x = features
    for linear, norm in ((0, 1), (3, 4)):
        x = F.linear(x, w[f"{linear}.weight"], w[f"{linear}.bias"])
        x = (x - w[f"{norm}.running_mean"]) / (w[f"{norm}.running_var"] + 1e-5).sqrt()
        x = (x * w[f"{norm}.weight"] + w[f"{norm}.bias"]).clamp(min=0)
    return F.linear(x, w["6.weight"], w["6.bias"])


def test_the_verdict_is_the_largest_score_of_the_classifier(folder: Path) -> None:
    weights = train(load(folder))
    save(folder, weights)
    content_filter = build(folder)
    features = encode(content_filter.siglip, frames(40)).detach()
    expected = by_hand(weights, features)
    torch.testing.assert_close(content_filter.classifier(features), expected, atol=1e-3, rtol=1e-4)
    verdicts = content_filter(frames(40))
    assert verdicts.tolist() == expected.argmax(dim=1).tolist()
    assert len(set(verdicts.tolist())) > 1


def test_parameters_and_statistics_are_those_of_the_file(folder: Path) -> None:
    weights = train(load(folder))
    save(folder, weights)
    state = build(folder).classifier.state_dict()
    assert state.keys() == weights.keys() and len(state) == 16
    assert all(torch.equal(state[name], weights[name]) for name in state)


def test_the_released_widths_and_names() -> None:
    from cosmos_nemo.stages.guardrail.content_filter import SafetyClassifier

    with torch.device("meta"):
        state = SafetyClassifier((1152, 512, 256)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("weight")}
    assert shapes == {
        "network.layers.0.weight": (512, 1152),
        "network.layers.1.weight": (512,),
        "network.layers.3.weight": (256, 512),
        "network.layers.4.weight": (256,),
        "network.layers.6.weight": (7, 256),
    }


@pytest.mark.parametrize("index", range(7))
def test_each_class_has_its_place(index: int, folder: Path) -> None:
    weights = load(folder)
    weights["network.layers.6.bias"] = torch.eye(7)[index] * 50
    save(folder, weights)
    assert [CLASSES[verdict] for verdict in build(folder)(frames()).tolist()] == [CLASSES[index]] * 6
    assert CLASSES[0] == "Safe" and CLASSES[2] == "Violence" and CLASSES[6] == "Self-Harm"


def test_a_frame_is_judged_the_same_alone_and_in_company(folder: Path) -> None:
    save(folder, train(load(folder)))
    content_filter = build(folder)
    alone = torch.cat([content_filter(frame[None]) for frame in frames(8)])
    assert content_filter(frames(8)).tolist() == alone.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["network.layers.0.weight", "network.layers.6.bias"])
def test_a_score_that_is_no_number_is_no_pass(name: str, value: float, folder: Path) -> None:
    weights = load(folder)
    weights[name].flatten()[1] = value
    save(folder, weights)
    with pytest.raises(GuardrailUnavailable, match="NaN or an infinite score"):
        build(folder)(frames())


def test_features_of_length_zero_are_no_pass(folder: Path) -> None:
    content_filter = build(folder)
    for parameter in content_filter.siglip.parameters():
        parameter.zero_()
    with pytest.raises(GuardrailUnavailable, match="NaN"):
        content_filter(frames())


def test_too_few_scores_are_no_pass(folder: Path) -> None:
    content_filter = build(folder)
    content_filter.classifier = nn.Linear(16, 6)
    with pytest.raises(GuardrailUnavailable, match=r"\(6, 6\) for 6 frames and 7 classes"):
        content_filter(frames())


def rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load(folder)
        change(weights)
        save(folder, weights)

    return damage


def truncate(folder: Path) -> None:
    path = folder / CLASSIFIER_FILE
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CLASSIFIER_FILE).unlink(), "does not exist"),
        (truncate, "truncated or damaged"),
        (lambda folder: torch.save({"model": {}}, folder / CLASSIFIER_FILE), "holds no named tensors"),
        (rewrite(lambda w: w.pop("network.layers.3.weight")), "no classifier of the video content filter"),
        (rewrite(lambda w: w.pop("network.layers.4.running_var")), "first: network.layers.4.running_var"),
        (rewrite(lambda w: w.update(x=torch.zeros(1))), "another network, first: x"),
        (
            rewrite(lambda w: w.update({"network.layers.6.weight": torch.zeros(8, 8)})),
            "network.layers.6.weight is",
        ),
        (
            rewrite(lambda w: w.update({"network.layers.0.weight": torch.zeros(16, 24)})),
            "takes 24 features, but the SigLIP beside it gives 16",
        ),
    ],
)
def test_a_damaged_or_foreign_classifier_is_refused(
    damage: Callable[[Path], None], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        check_content_filter(folder)


def test_an_object_in_the_file_is_never_run(folder: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, folder / CLASSIFIER_FILE)
    with pytest.raises(CheckpointError, match="holds an object of"):
        check_content_filter(folder)
