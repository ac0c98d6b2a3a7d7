"""Reading checkpoints of every layout: zarr folder, torch_dist, model.pt, safetensors, TorchScript."""

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.detect import open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "LazyTensor", "open_checkpoint"]
