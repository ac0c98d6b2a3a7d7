"""The video tokenizer as a stage: latents to frames and back."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.models.video_tokenizer.model import (
    MODULES,
    VideoTokenizer,
    build_autoencoder,
)
from cosmos_nemo.stages.continuous_tokenizer import ContinuousTokenizer
from cosmos_nemo.stages.tokenizer_folder import open_part, read_statistics


class Tokenizer(ContinuousTokenizer):
    """CV8x8x8, or another tokenizer of its kind."""

    shape: TokenizerShape

    def check(self) -> None:
        """CheckpointError unless the folder holds the parts and the statistics of such a tokenizer."""
        for part in self.parts:
            open_part(self.folder, self.shape, part=part)
        read_statistics(self.folder, self.shape)

    def build(self) -> VideoTokenizer:
        statistics = read_statistics(self.folder, self.shape)
        files = {part: open_part(self.folder, self.shape, part=part) for part in self.parts}
        autoencoder = build_autoencoder(self.shape, device=self.device, dtype=self.dtype, parts=self.parts)
        for part, (checkpoint, rules) in files.items():
            modules = nn.ModuleDict({name: autoencoder.get_submodule(name) for name in MODULES[part]})
            load_into(modules, checkpoint=checkpoint, rules=rules)
        return VideoTokenizer(autoencoder, **statistics).to(self.device)

    def encode(self, video_BCTHW: Tensor, *, as_image: bool | None = None) -> Tensor:
        """The normalised latent, float32 on the device, of a video -1..1; see VideoTokenizer.encode."""
        return self._tokenizer.encode(video_BCTHW.to(self.device), as_image=as_image)

    def pieces(self, latent_BCTHW: Tensor) -> Iterator[Tensor]:
        return self._tokenizer.decode_pieces(latent_BCTHW)

    def share(self, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
        return self._tokenizer.decode_share(latent_BCTHW, group=group)

    @property
    def _tokenizer(self) -> VideoTokenizer:
        assert isinstance(self.module, VideoTokenizer), "enter the stage first"
        return self.module
