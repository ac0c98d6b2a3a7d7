"""Help that comes at once, told by what was imported for it: seconds depend on what else a machine does."""

import subprocess
import sys

from tests.parallel import launcher

SLOW_LIBRARIES = frozenset(
    ("torch", "numpy", "megatron", "nemo", "transformers", "diffusers", "huggingface_hub", "PIL", "imageio")
)


def help_of(*command: str) -> str:
    """What `python COMMAND --help` prints; it must succeed without a slow library."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"],
        cwd=launcher.ROOT,
        env=launcher.clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not SLOW_LIBRARIES & imported
    return done.stdout
