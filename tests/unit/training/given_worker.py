"""One rank of tests/parallel/train_worker.py, of networks that are told frames."""

import os
import sys
from pathlib import Path

from tests.parallel import train_worker

if __name__ == "__main__":
    train_worker.main(Path(sys.argv[2]), "cpu", train_worker.tiny(sys.argv[1]))
    os._exit(0)  # gloo's teardown at exit was seen to abort
