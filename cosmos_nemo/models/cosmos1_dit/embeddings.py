"""The position tables of Cosmos 1.0 and Predict1 (spec/predict1-diffusion.md, 1.4)."""

import math

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """Three learned tables, one per axis, added up and scaled to unit root mean square per token."""

    def __init__(self, sizes_THW: tuple[int, int, int], hidden_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        frames, rows, columns = sizes_THW
        self.pos_emb_t = nn.Parameter(torch.zeros(frames, hidden_size, dtype=dtype))
        self.pos_emb_h = nn.Parameter(torch.zeros(rows, hidden_size, dtype=dtype))
        self.pos_emb_w = nn.Parameter(torch.zeros(columns, hidden_size, dtype=dtype))

    def forward(self, places_S3: Tensor) -> Tensor:
        """Integer places (t, h, w) of each token -> [S, 1, D] in the tables' dtype, worked out in float32."""
        t, h, w = places_S3.unbind(-1)
        embedding = self.pos_emb_t[t].float() + self.pos_emb_h[h].float() + self.pos_emb_w[w].float()
        norm = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
        embedding = embedding / (1e-6 + norm / math.sqrt(embedding.shape[-1]))
        return embedding[:, None].to(self.pos_emb_t.dtype)
