import argparse
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.tools import verify
from cosmos_nemo.tools.checks import table
from cosmos_nemo.tools.checks.tolerance import error_of

GOLDEN = Path(__file__).parents[2] / "golden"
RES = GOLDEN / "predict1_res_trajectories.safetensors"
ROPE = GOLDEN / "predict1_rope_fullsize.safetensors"
STRICT = [{"outputs": "*", "kind": "max_abs", "value": 1e-6}]


def run(*words):
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return verify.run(parser.parse_args([str(word) for word in words]))


def write(folder, outputs, *, check="fake", tolerance=STRICT, name="case", inputs=None, **fields):
    """A reference file of the test's own making."""
    path = folder / f"{name}.safetensors"
    tensors = {f"outputs.{name}": tensor.contiguous() for name, tensor in outputs.items()}
    tensors |= {f"inputs.{name}": tensor.contiguous() for name, tensor in (inputs or {}).items()}
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps({"check": check, "tolerance": tolerance, **fields}))
    return path


@pytest.fixture
def made(monkeypatch):
    """What the check "fake" yields: a dict of outputs to fill, or an exception under "raise"."""
    outputs = {}

    def check(case, tensors, options):
        for name, tensor in outputs.items():
            if isinstance(tensor, Exception):
                raise tensor
            yield name, tensor

    monkeypatch.setitem(table.CHECKS, "fake", table.Check(function=check))
    return outputs


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_right_files_pass_with_a_line_per_output(capsys):
    assert run(RES, ROPE) == 0
    printed = lines(capsys)
    outputs = [name for path in (RES, ROPE) for name in load_file(path) if name.startswith("outputs.")]
    assert len(printed) == len(outputs) == 99
    assert all(line.endswith("  ok") for line in printed)


def test_a_line_tells_file_output_error_tolerance_and_verdict(tmp_path, made, capsys):
    made["final"] = torch.tensor([1.0, 2.5])
    run(write(tmp_path, {"final": torch.tensor([1.0, 2.0])}))
    assert lines(capsys)[0].split() == ["case.safetensors", "final", "5.00e-01", "max_abs", "1e-06", "FAIL"]


@pytest.mark.parametrize("path", [RES, ROPE], ids=lambda path: path.stem)
def test_one_wrong_number_in_a_golden_file_fails_the_run(path, tmp_path, capsys):
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("outputs."))
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, tmp_path / path.name)
    shutil.copy(path.with_suffix(".json"), tmp_path)
    assert run(tmp_path / path.name) == 1
    failed = [line for line in lines(capsys) if "FAIL" in line]
    assert len(failed) == 1
    assert name.removeprefix("outputs.") in failed[0]


def test_a_wrong_input_in_a_golden_file_fails_the_run(tmp_path, capsys):
    tensors = load_file(RES)
    tensors["inputs.mu"] += 1e-3
    save_file(tensors, tmp_path / RES.name)
    shutil.copy(RES.with_suffix(".json"), tmp_path)
    assert run(tmp_path / RES.name) == 1


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (torch.tensor([1.0, math.nan]), "FAIL"),
        (torch.tensor([1.0, math.inf]), "FAIL"),
        (torch.tensor([[1.0, 2.0]]), "FAIL: shape (1, 2), not (2,)"),
        (torch.tensor(1.0), "FAIL: shape (), not (2,)"),
    ],
)
def test_values_that_are_no_numbers_and_other_shapes_fail(got, reason, tmp_path, made, capsys):
    made["final"] = got
    assert run(write(tmp_path, {"final": torch.tensor([1.0, 2.0])})) == 1
    assert lines(capsys)[0].endswith(reason)


def test_nan_in_the_reference_never_passes(tmp_path, made):
    made["final"] = torch.tensor([math.nan])
    assert run(write(tmp_path, {"final": torch.tensor([math.nan])})) == 1


def test_an_output_that_the_check_does_not_make_is_absent_and_fails_the_run(tmp_path, made, capsys):
    made["a"] = torch.zeros(2)
    path = write(tmp_path, {"a": torch.zeros(2), "v2w.final": torch.zeros(2)})
    assert run(path) == 1
    assert lines(capsys)[1].endswith("absent: fake does not make it")


def test_a_check_that_is_not_built_is_absent_and_fails_the_run(tmp_path, capsys):
    path = write(tmp_path, {"logits": torch.zeros(2), "tokens": torch.zeros(2)}, check="another_network")
    assert run(path) == 1
    printed = lines(capsys)
    assert len(printed) == 2
    assert all(line.endswith(" absent: another_network is not built") for line in printed)


def test_only_leaves_out_what_is_absent(tmp_path, made, capsys):
    made["a"] = torch.zeros(2)
    path = write(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2), "c.d": torch.zeros(2)})
    assert run(path, "--only", "a") == 0
    assert len(lines(capsys)) == 1
    assert run(path, "--only", "a", "--only", "c*") == 1
    assert [line.split()[1] for line in lines(capsys)] == ["a", "c.d"]


def test_only_does_not_run_checks_of_files_it_leaves_out(tmp_path, monkeypatch):
    def check(case, tensors, options):
        pytest.fail("ran")
        yield

    monkeypatch.setitem(table.CHECKS, "fake", table.Check(function=check))
    left_out = write(tmp_path, {"b": torch.zeros(2)}, name="left_out")
    assert run(RES, left_out, "--only", "gauss*") == 0


def test_an_output_that_the_file_lacks_fails_the_run(tmp_path, made, capsys):
    made |= {"a": torch.zeros(2), "b": torch.zeros(2)}
    assert run(write(tmp_path, {"a": torch.zeros(2)})) == 1
    assert lines(capsys)[1].endswith("FAIL: the file has no such output")


def test_nothing_checked_is_a_failure(tmp_path, made, capsys):
    assert run(write(tmp_path, {})) == 1
    assert run(RES, "--only", "no_such_*") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("nothing was checked") == 2


def test_a_check_that_breaks_fails_its_outputs_and_the_next_file_is_still_checked(tmp_path, made, capsys):
    made |= {"a": torch.zeros(2), "raise": RuntimeError("mat1 and mat2")}
    broken = write(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)})
    assert run(broken, RES) == 1
    printed = lines(capsys)
    assert printed[0].endswith("ok")
    assert all(line.endswith(" FAIL: the check stopped with RuntimeError") for line in printed[1:3])
    assert len(printed) == 3 + 75


def test_weights_that_cannot_be_used_exit_2_with_one_sentence(tmp_path, made, capsys):
    made["raise"] = CheckpointError("3 of 12 tensors missing.")
    assert run(write(tmp_path, {"a": torch.zeros(2)})) == 2
    assert capsys.readouterr().err == "cosmos-nemo verify: 3 of 12 tensors missing.\n"


def test_the_first_rule_that_matches_counts(tmp_path, made, capsys):
    made |= {"sample.x": torch.tensor([1.5]), "x": torch.tensor([1.5])}
    rules = [
        {"outputs": "sample.*", "kind": "max_abs", "value": 1},
        {"outputs": "*", "kind": "max_abs", "value": 0.1},
    ]
    path = write(tmp_path, {"sample.x": torch.tensor([1.0]), "x": torch.tensor([1.0])}, tolerance=rules)
    assert run(path) == 1
    assert [line.split()[-1] for line in lines(capsys)] == ["ok", "FAIL"]


@pytest.mark.parametrize(
    ("kind", "name", "got", "want", "error"),
    [
        ("max_abs", "x", [1.0, 2.0], [1.0, 2.25], 0.25),
        ("max_abs_over_std", "x", [0.0, 4.5], [0.0, 4.0], 0.25),
        ("max_abs_over_std", "x", [3.0, 3.0], [3.0, 3.0], 0.0),
        ("max_abs_over_std", "x", [3.0, 3.1], [3.0, 3.0], math.inf),
        ("exact", "x", [7, 9], [7, 8], 1.0),
        ("max_abs_levels", "video", [255, 3], [250, 3], 5.0),
        ("max_abs_levels", "normalized_0", [1.0], [1.0 - 2 / 127.5], 2.0),
        ("max_abs_levels", "clip.normalized_0", [1.0], [0.0], 127.5),
        ("relative_l2", "x", [3.0, 5.0], [3.0, 4.0], 0.2),
        ("relative_l2", "x", [0.0], [0.0], 0.0),
        ("max_abs", "x", [], [], 0.0),
    ],
)
def test_error_of_each_kind(kind, name, got, want, error):
    assert error_of(name, torch.tensor(got), torch.tensor(want), kind=kind) == pytest.approx(error, rel=1e-5)


def test_levels_of_uint8_do_not_wrap_around():
    got, want = torch.tensor([0], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)
    assert error_of("video", got, want, kind="max_abs_levels") == 255


@pytest.mark.parametrize(("off", "code"), [(0, 0), (1, 1)])
def test_exact_admits_no_difference(off, code, tmp_path, made):
    made["tokens"] = torch.tensor([5, 6 + off])
    rules = [{"outputs": "*", "kind": "exact", "value": 0}]
    assert run(write(tmp_path, {"tokens": torch.tensor([5, 6])}, tolerance=rules)) == code


@pytest.mark.parametrize(("off", "code"), [(0.019, 0), (0.021, 1)])
def test_bfloat16_is_held_to_a_relative_error_of_two_percent(off, code, tmp_path, made, capsys):
    made["final"] = torch.tensor([0.0, 100.0 * (1 + off)])
    path = write(tmp_path, {"final": torch.tensor([0.0, 100.0])})
    assert run(path, "--dtype", "bfloat16") == code
    assert "relative_l2 0.02" in lines(capsys)[0]


def test_options_reach_the_check(tmp_path, monkeypatch):
    seen = []

    def check(case, tensors, options):
        seen.append((case["note"], sorted(tensors), options))
        yield "a", torch.zeros(2)

    monkeypatch.setitem(table.CHECKS, "fake", table.Check(function=check, takes_weights=True))
    (tmp_path / "ckpt").mkdir()
    path = write(tmp_path, {"a": torch.zeros(2)}, inputs={"x": torch.zeros(1)}, note="hello")
    assert run(path, "--weights", tmp_path / "ckpt", "--dtype", "bfloat16") == 0
    [(note, names, options)] = seen
    assert (note, names) == ("hello", ["inputs.x", "outputs.a"])
    assert (options.folder, options.weights, options.backend) == (tmp_path, tmp_path / "ckpt", "torch")
    assert (options.dtype, options.device) == (torch.bfloat16, torch.device("cpu"))


def broken_json(path):
    path.with_suffix(".json").write_text('{"check": ')


def json_of(fields):
    return lambda path: path.with_suffix(".json").write_text(json.dumps(fields))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.with_suffix(".json").unlink(), "case.json is missing"),
        (broken_json, "cannot be read as JSON"),
        (truncated, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"no tensors in here at all"), "damaged"),
        (json_of([1]), "no JSON object"),
        (json_of({"tolerance": STRICT}), "no `check`"),
        (json_of({"check": "fake"}), "no `tolerance`"),
        (json_of({"check": "fake", "tolerance": [{"outputs": "*"}]}), "no `tolerance`"),
        (json_of({"check": "fake", "tolerance": [{"outputs": "*", "kind": "psnr", "value": 1}]}), "psnr"),
        (json_of({"check": "fake", "tolerance": [{"outputs": "b", "kind": "exact", "value": 0}]}), "no rule"),
        (
            json_of({"check": "fake", "tolerance": STRICT, "weights_from": {"text": "gone.safetensors"}}),
            "gone",
        ),
        (json_of({"check": "fake", "tolerance": STRICT, "weights_from": ["x"]}), "weights_from"),
    ],
)
def test_a_missing_or_damaged_file_exits_2_with_one_sentence_before_anything_is_checked(
    damage, message, tmp_path, made, capsys
):
    made["a"] = torch.zeros(2)
    path = write(tmp_path, {"a": torch.zeros(2)})
    damage(path)
    assert run(RES, path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "no/such/folder"], "--weights no/such/folder does not exist"),
        (["--weights", GOLDEN], "--weights has no effect"),
        (["--backend", "te"], "--backend te needs a GPU"),
        (["--device", "tpu9"], "--device tpu9"),
    ],
)
def test_a_flag_that_does_not_fit_exits_2_with_one_sentence(words, message, capsys):
    assert run(RES, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_file_that_is_no_safetensors_exits_2(capsys):
    assert run(RES.with_suffix(".json")) == 2
    assert "name the .safetensors" in capsys.readouterr().err


def test_res_files_of_other_sizes_and_constants_are_checked_the_same_way(tmp_path, capsys):
    # Two Euler steps and the clean-up call, written out in numpy.
    noise, mu, s = np.random.RandomState(3).standard_normal((2, 7)), np.linspace(-1, 1, 7), 0.8
    sigmas = np.array([10.0, (10 ** (1 / 5) + 0.5 * (0.1 ** (1 / 5) - 10 ** (1 / 5))) ** 5, 0.1])
    x, inputs, predictions = 10 * noise, [], []
    for now, then in zip(sigmas, [*sigmas[1:], None], strict=True):
        inputs.append(x)
        predictions.append((s**2 * x + now**2 * mu) / (s**2 + now**2))
        if then is not None:
            x = x + (then - now) * (x - predictions[-1]) / now
    outputs = {
        "mine.sigma_schedule": sigmas,
        "mine.denoiser_inputs": np.stack(inputs),
        "mine.denoiser_sigmas": sigmas,
        "mine.denoiser_outputs": np.stack(predictions),
        "mine.final": predictions[-1],
    }
    case = {"key": "mine", "denoiser": "gauss", "solver": "1euler", "num_steps": 2}
    path = write(
        tmp_path,
        {name: torch.from_numpy(value.copy()) for name, value in outputs.items()},
        inputs={"noise": torch.from_numpy(noise), "mu": torch.from_numpy(mu)},
        check="predict1_res",
        tolerance=[{"outputs": "*", "kind": "max_abs", "value": 1e-10}],
        s_data=s,
        cases=[case | {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0}],
    )
    assert run(path) == 0
    assert len(lines(capsys)) == 5


def test_rope_files_of_other_sizes_and_ratios_are_checked_the_same_way(tmp_path, capsys):
    def axis(positions, dim, ratio, before, after):
        theta = 10000 * ratio ** (dim / (dim - 2))
        angles = np.outer(positions, theta ** (-np.arange(0, dim, 2) / dim))
        half = np.pad(angles, ((0, 0), (before, after)))
        return torch.from_numpy(np.concatenate([half, half], axis=1)).float()

    # head_dim 24: 8 for t, 8 for h, 8 for w.
    outputs = {
        "xl_fps12.5_f32.t_axis": axis(np.arange(5) / 12.5 * 24, 8, 3, 0, 8),
        "xl_fps12.5_f32.h_axis": axis(np.arange(7), 8, 1.5, 4, 4),
        "xl_fps12.5_f32.w_axis": axis(np.arange(2), 8, 2, 8, 0),
    }
    path = write(
        tmp_path,
        outputs,
        check="predict1_rope",
        tolerance=[{"outputs": "*", "kind": "max_abs", "value": 1e-5}],
        head_dim=24,
        ratios={"xl": {"t": 3, "h": 1.5, "w": 2}},
    )
    assert run(path) == 0
    assert len(lines(capsys)) == 3


def test_a_rope_output_whose_name_is_not_understood_is_absent(tmp_path, capsys):
    path = write(
        tmp_path, {"7b_fps24_f64.t_axis": torch.zeros(2, 24)}, check="predict1_rope", head_dim=24, ratios={}
    )
    assert run(path) == 1
    assert "absent" in lines(capsys)[0]


class FakeNetwork:
    """F = x * c_noise + mean of the text, so that every input matters."""

    def positions(self, latent_THW, *, fps):
        return latent_THW, fps

    def encode_text(self, text_BLD):
        return text_BLD.mean()

    def modulate(self, timesteps_B):
        return timesteps_B

    def __call__(self, x, *, modulation, text, positions, padding_mask_B1HW, given_mask_B1THW):
        assert given_mask_B1THW is None
        assert positions == ((2, 4, 6), 12.0)
        assert padding_mask_B1HW.shape == (1, 1, 32, 48)
        return x * modulation.reshape(-1, 1, 1, 1, 1) + text


def euler_by_hand(noise, sigmas, output_of):
    """The sampler of spec 4.2 in numpy, and its states."""
    x, states = noise * np.sqrt(sigmas[0] ** 2 + 1), []
    for now, then in pairwise(sigmas):
        states.append(x)
        variance = now**2 + 0.25
        output = output_of(x / np.sqrt(variance), np.log(now) / 4)
        clean = 0.25 / variance * x + 0.5 * now / np.sqrt(variance) * output
        x = x + (then - now) / now * (x - clean)
    return x, np.concatenate(states)


@pytest.mark.parametrize(
    ("guidance", "uncond", "text", "reads_negative"),
    [
        (2.5, "negative prompt", 0.3 + 2.5 * (0.3 + 0.2), True),
        (2.5, "zero text", 0.3 + 2.5 * 0.3, False),
        (-1.0, "negative prompt", -0.2, True),
        (0.0, "negative prompt", 0.3, False),
    ],
)
def test_sample_files_of_other_sizes_and_guidance_are_checked_the_same_way(
    guidance, uncond, text, reads_negative, tmp_path, monkeypatch, capsys
):
    from cosmos_nemo.tools.checks import predict1_sample

    asked = []

    def network_for(config, *, weights, options):
        asked.append((config, weights))
        return FakeNetwork()

    monkeypatch.setattr(predict1_sample, "network_for", network_for)
    noise = np.random.RandomState(0).standard_normal((1, 3, 2, 4, 6)).astype(np.float32)
    sigmas = np.array([20.0, (20 ** (1 / 3) + (0.5 ** (1 / 3) - 20 ** (1 / 3)) / 2) ** 3, 0.5, 0])
    final, states = euler_by_hand(noise.astype(np.float64), sigmas, lambda x, c_noise: x * c_noise + text)
    inputs = {
        "mine_noise": torch.from_numpy(noise),
        "t5_text_embeddings": torch.full((1, 5, 4), 0.3),
        "padding_mask": torch.zeros(1, 1, 32, 48),
        "fps": torch.tensor([12.0]),
    }
    if reads_negative:
        inputs["neg_t5_text_embeddings"] = torch.full((1, 5, 4), -0.2)
    levels = {"sigma_max": 20.0, "sigma_min": 0.5, "rho": 3.0}
    case = {"weights": "text", "guidance": guidance, "uncond": uncond, "sampler": "euler"} | levels
    write(tmp_path, {}, name="weights", config={"num_blocks": 9})
    path = write(
        tmp_path,
        {
            "euler_sigmas": torch.from_numpy(sigmas).float(),
            "mine.final": torch.from_numpy(final).float(),
            "mine.states": torch.from_numpy(states).float(),
        },
        inputs=inputs,
        check="predict1_sample",
        tolerance=[{"outputs": "*", "kind": "max_abs_over_std", "value": 1e-5}],
        steps=3,
        cases={"mine": case},
        weights_from={"text": "weights.safetensors"},
    )
    assert run(path) == 0
    assert len(lines(capsys)) == 3
    (tmp_path / "ckpt").mkdir()
    assert run(path, "--weights", tmp_path / "ckpt") == 0
    config = {"num_blocks": 9}
    assert asked == [(config, tmp_path / "weights.safetensors"), (config, tmp_path / "ckpt")]
