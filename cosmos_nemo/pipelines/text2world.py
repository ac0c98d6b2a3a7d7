"""Text2World: prompt -> text embedding -> latent -> frames."""

from torch import Tensor

from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.pipelines.base import DiffusionPipeline, OnProgress, Video
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.stages.prompt import prepare_prompt
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler


class Text2World(DiffusionPipeline[Text2WorldRequest, PromptUpsampler]):
    """A video of what a prompt says; of a Text2Image, which makes a single frame, an image."""

    def make(self, request: Text2WorldRequest, *, on_progress: OnProgress) -> Video | None:
        prompt = rank_zero(lambda: self._prepare(request), self.ranks)
        prompt_BLD, negative_BLD = self.embed(prompt, request.negative_prompt)
        with self.denoise as denoise:
            self.tokenizer.prefetch()
            latent_BCTHW = denoise(request, prompt_BLD, negative_BLD, on_step=on_progress("denoise"))
        frames_THWC = self.decode(latent_BCTHW, following=self.video_guard)
        return only_rank_zero(lambda: self._show(frames_THWC, prompt, request.fps), self.ranks)

    def _prepare(self, request: Text2WorldRequest) -> str:
        return prepare_prompt(request, text_guard=self.text_guard, upsampler=self.upsampler)

    def _show(self, frames_THWC: Tensor | None, prompt: str, fps: int) -> Video:
        assert frames_THWC is not None
        return self.guarded(frames_THWC, prompt=prompt, fps=fps)
