"""Writing checkpoints: NeMo's torch_dist, the released zarr layout and model.pt, safetensors, diffusers."""

from cosmos_nemo.checkpoint.writer.safetensors import write_diffusers, write_safetensors
from cosmos_nemo.checkpoint.writer.torch_dist import write_torch_dist
from cosmos_nemo.checkpoint.writer.torch_file import write_model_pt
from cosmos_nemo.checkpoint.writer.zarr import write_zarr

__all__ = ["write_diffusers", "write_model_pt", "write_safetensors", "write_torch_dist", "write_zarr"]
