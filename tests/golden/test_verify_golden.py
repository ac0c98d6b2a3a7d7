"""The package against every reference file that is here, through the command that anyone can run."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cosmos_nemo.tools import main

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.safetensors"))


def verify(*words):
    return main.main(["verify", *map(str, words)])


def outputs(path):
    with safe_open(path, framework="pt") as file:
        return sorted(name.removeprefix("outputs.") for name in file.keys() if name.startswith("outputs."))  # noqa: SIM118


def of_text2world(path):
    """All but the cases of predict1_sample that need the video-conditioned network."""
    return [name for name in outputs(path) if not name.startswith("v2w_")]


def only(names):
    return [word for name in names for word in ("--only", name)]


def printed(capsys):
    """Output name -> verdict."""
    return {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_matches_its_reference(path, capsys):
    assert verify(path) == 0
    lines = printed(capsys)
    assert sorted(lines) == outputs(path)
    assert all(line.endswith("  ok") for line in lines.values())


@pytest.mark.parametrize(
    "weights", ["nemo_text_zarr", "nemo_text_torch_dist", "nemo_text_torch_dist/weights"]
)
@pytest.mark.parametrize("name", ["predict1_dit_tiny", "predict1_sample_tiny"])
def test_the_nemo_folders_give_the_same_numbers_as_the_weights_in_the_file(name, weights):
    path = HERE / f"{name}.safetensors"
    assert verify(path, "--weights", HERE / weights, *only(of_text2world(path))) == 0


@pytest.mark.parametrize("name", ["predict1_dit_tiny", "predict1_dit_video_tiny"])
def test_a_changed_weight_fails(name, tmp_path, capsys):
    tensors = load_file(HERE / f"{name}.safetensors")
    tensors["weights.net.blocks.block1.blocks.2.block.layer2.weight"][0, 0] += 0.1
    save_file(tensors, tmp_path / f"{name}.safetensors")
    shutil.copy(HERE / f"{name}.json", tmp_path)
    assert verify(tmp_path / f"{name}.safetensors") == 1
    failed = [output for output, line in printed(capsys).items() if line.endswith("FAIL")]
    assert failed == ["block1_out_BTHWD", "final", "final_fps_alt"]


@pytest.mark.parametrize(
    "change", [{"guidance": 3.1}, {"uncond": "zero text"}, {"sigma_max": 79.0}, {"rho": 6.0}]
)
def test_a_sample_made_with_another_constant_fails(change, tmp_path, capsys):
    for path in HERE.glob("predict1_*_tiny.*"):
        shutil.copy(path, tmp_path)
    sample = tmp_path / "predict1_sample_tiny.safetensors"
    case = json.loads(sample.with_suffix(".json").read_text())
    case["cases"]["t2w_res"] |= change
    sample.with_suffix(".json").write_text(json.dumps(case))
    assert verify(sample, "--only", "t2w_res.final", "--only", "t2w_euler_negprompt.final") == 1
    assert [line.split()[-1] for line in printed(capsys).values()] == ["ok", "FAIL"]


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("v2w_euler", {"input_frames_guidance": True}),
        ("v2w_euler_inputguid", {"input_frames_guidance": False}),
        ("v2w_res_first_n_g3", {"location": "first_and_last_1"}),
        ("v2w_res_first_and_last_1_g-1", {"location": "first_n"}),
    ],
)
def test_a_sample_with_other_given_frames_fails(case, change, tmp_path, capsys):
    for path in HERE.glob("predict1_*_tiny.*"):
        shutil.copy(path, tmp_path)
    sample = tmp_path / "predict1_sample_tiny.safetensors"
    facts = json.loads(sample.with_suffix(".json").read_text())
    facts["cases"][case] |= change
    sample.with_suffix(".json").write_text(json.dumps(facts))
    assert verify(sample, "--only", f"{case}.final") == 1
    assert [line.split()[-1] for line in printed(capsys).values()] == ["FAIL"]


@pytest.mark.parametrize(
    ("number", "change", "output"),
    [
        (0, {"top_p": 0.7}, "case0.probs"),
        (2, {"temperature": 0.7}, "case2.probs"),
        (16, {"top_k": 6}, "case16.probs"),
        (17, {"top_k": 60}, "case17.token"),
    ],
)
def test_tokens_drawn_in_another_way_fail(number, change, output, tmp_path, capsys):
    path = HERE / "predict1_ar_sampling.safetensors"
    shutil.copy(path, tmp_path)
    facts = json.loads(path.with_suffix(".json").read_text())
    facts["cases"][number] |= change
    (tmp_path / "predict1_ar_sampling.json").write_text(json.dumps(facts))
    assert verify(tmp_path / path.name, "--only", output) == 1
    assert [line.split()[-1] for line in printed(capsys).values()] == ["FAIL"]


DECODER = "predict1_ar_diffusion_decoder"


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"guidance": 1.9}, ["sample"]),
        ({"sigma_min": 0.002}, ["c_noise", "sample", "sigmas"]),
        ({"rope_ratios": {"t": 1, "h": 1.0, "w": 1.5}}, ["net", "net_uncond", "rope", "sample"]),
        ({"overlap_latent_frames": 3}, ["split_17"]),
        ({"blend_overlap_frames": 3}, ["blend"]),
    ],
)
def test_a_decoder_with_another_constant_fails(change, failed, tmp_path, capsys):
    for path in HERE.glob(f"{DECODER}.*"):
        shutil.copy(path, tmp_path)
    path = tmp_path / f"{DECODER}.safetensors"
    case = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(case | change))
    assert verify(path) == 1
    verdicts = {output: line for output, line in printed(capsys).items() if not line.endswith("  ok")}
    assert sorted(verdicts) == failed


def test_another_embedding_of_a_token_fails_in_all_that_follows(tmp_path, capsys):
    tensors = load_file(HERE / f"{DECODER}.safetensors")
    tensors["weights.token_embedder.weight"][0] += 1
    save_file(tensors, tmp_path / f"{DECODER}.safetensors")
    shutil.copy(HERE / f"{DECODER}.json", tmp_path)
    assert verify(tmp_path / f"{DECODER}.safetensors") == 1
    failed = {output for output, line in printed(capsys).items() if line.endswith("FAIL")}
    assert {"net_uncond", "sample"} <= failed <= {"embedded", "net", "net_uncond", "sample"}


def test_weights_of_another_model_exit_2_with_a_sentence(capsys):
    assert verify(HERE / "predict1_dit_video_tiny.safetensors", "--weights", HERE / "nemo_text_zarr") == 2
    assert "nemo_text_zarr" in capsys.readouterr().err


def test_bfloat16_stays_within_its_relative_error():
    path = HERE / "predict1_dit_tiny.safetensors"
    assert verify(path, "--dtype", "bfloat16") == 0
