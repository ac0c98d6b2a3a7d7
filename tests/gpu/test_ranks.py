"""Plans on several GPUs make the video of one. On the CPU the same is held to 1e-5 (tests/parallel)."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from cosmos_nemo.models.common.missing import te_missing
from tests.parallel import launcher

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
PLANS = {
    "cp2": ["--cp_size", "2", "--cfg_parallel", "off"],
    "cfg2": ["--cfg_parallel", "on"],
    "tp2": ["--tensor_parallel", "2", "--cfg_parallel", "off"],
}


TEXT2WORLD, VIDEO2WORLD = "Cosmos-Nano-Text2World", "Cosmos-Nano-Predict2-Video2World"


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("assets") / "nano"
    write_standin([find_card(name) for name in (TEXT2WORLD, VIDEO2WORLD)], folder, seed=0, layout="folder")
    frame = numpy.indices((128, 128)).sum(0).astype(numpy.uint8)
    Image.fromarray(frame).convert("RGB").save(folder / "frame.png")
    return folder


@pytest.mark.parametrize(
    ("model", "computed"),
    [
        (TEXT2WORLD, ["--backend", "torch"]),
        (TEXT2WORLD, ["--backend", "te"]),
        (TEXT2WORLD, ["--precision", "fp8"]),
        (VIDEO2WORLD, ["--backend", "torch"]),
    ],
)
def test_two_gpus_make_the_video_of_one(
    assets: Path, tmp_path: Path, model: str, computed: list[str]
) -> None:
    """And decode it together, with either tokenizer."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if "te" in computed and (missing := te_missing()) is not None:
        pytest.skip(missing)
    if model == VIDEO2WORLD:
        computed = [*computed, "--conditioned_image_or_video_path", str(assets / "frame.png")]
    videos = {
        name: _video(assets, tmp_path / f"{name}.npy", [*computed, *flags], model)
        for name, flags in PLANS.items()
    }
    one = _video(assets, tmp_path / "one.npy", [*computed, "--num_devices", "1", "--cp_size", "1"], model)
    for name, video in videos.items():
        error = ((video.astype(float) - one.astype(float)) ** 2).mean()
        psnr = 10 * numpy.log10(255**2 / max(error, 1e-9))
        print(f"{computed} {name}: PSNR {psnr:.1f} dB")
        assert psnr > 30, name


def _video(assets: Path, path: Path, flags: list[str], model: str) -> numpy.ndarray:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *(f"--master_port={launcher.free_port()}", str(ROOT / "inference/general.py")),
        *("--model", model, "--cosmos_assets_dir", str(assets), "--prompt", "A red ball."),
        *("--num_steps", "4", "--video_save_path", str(path), *flags),
    ]
    environment = {k: v for k, v in launcher.clean_environment().items() if k != "CUDA_VISIBLE_DEVICES"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return numpy.load(path)
