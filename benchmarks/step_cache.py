"""What a step cache would cost in PSNR, beside the same saving by fewer steps: why there is none.

python benchmarks/step_cache.py
python benchmarks/step_cache.py --ways "20 steps" "blocks 2" --prompts "A red ball rolls to the right."

Videos of the nano Text2World on the CPU, compared with those of all 35 steps (RES, guidance of the model).
"blocks N": of every N denoiser calls one computes the layers; the others add what the layers added then to
their own embedded latent (as TeaCache and first-block caches do, arXiv:2411.19108, here at fixed steps).
"guidance N": the branch without the prompt is computed in one of N calls; the others take its difference to
the other branch from then. The first calls and the last one are always computed. "saves" is network calls of
all steps over those computed; what a reused call still needs is left out of it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nano_generate import nano_job
from benchmarks.tokenizer_decode import psnr
from cosmos_nemo.job import Job
from cosmos_nemo.job.stages import denoise_stage, text_encoder_stage, tokenizer_stage
from cosmos_nemo.models.common.dit.embeddings import unpatchify
from cosmos_nemo.models.common.dit.model import DiT, NetworkModulation
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.request import latent_shape
from cosmos_nemo.sampling.denoiser import EdmDenoiser, guided
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.sampling.samplers import SAMPLERS

ALL_STEPS = 35
ALWAYS_FIRST = 3
"""Denoiser calls that are always computed: the layout of the video is made in them."""
WAYS = ("28 steps", "21 steps", "16 steps", "blocks 2", "blocks 3", "guidance 2", "guidance 4", "guidance 8")
PROMPTS = (
    "A red ball rolls to the right.",
    "A blue cube moves to the left on a green ground.",
    "A yellow ball bounces.",
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    maker = Maker(nano_job(args.flags, device=torch.device("cpu")))
    exact = [maker.video(prompt, seed, f"{ALL_STEPS} steps") for seed, prompt in enumerate(args.prompts)]
    rows = []
    for way in args.ways:
        found = [maker.video(prompt, seed, way) for seed, prompt in enumerate(args.prompts)]
        pairs = zip(found, exact, strict=True)
        values = [psnr(video_THWC, whole_THWC) for (video_THWC, _), (whole_THWC, _) in pairs]
        rows.append({"way": way, "saves": exact[0][1] / found[0][1], "psnr": values})
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ways", nargs="+", default=WAYS, metavar="WAY", help="N steps, blocks N, guidance N"
    )
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="each with its number as the seed")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.set_defaults(flags=["--num_steps", str(ALL_STEPS)])
    return parser.parse_args(argv)


class Maker:
    """Videos of one job, each in one of the ways."""

    def __init__(self, job: Job) -> None:
        groups = start_alone(job.device)
        self.job = job
        self.text_encoder, self.denoise = text_encoder_stage(job, groups), denoise_stage(job, groups)
        self.tokenizer = tokenizer_stage(job)

    @torch.inference_mode()
    def video(self, prompt: str, seed: int, way: str) -> tuple[Tensor, int]:
        """Its frames, uint8 [T, H, W, C], and the network calls that were computed."""
        request, card = self.job.request, self.job.card
        with self.text_encoder as encode:
            texts = [encode([prompt]), encode([request.negative_prompt])]
        if not request.negative_prompt:
            texts[1] = torch.zeros_like(texts[0])
        shape = latent_shape(request, card)
        noise = draw_noise(shape, seed=seed)
        with self.denoise as denoise:
            assert isinstance(denoise.module, DiT)
            num_steps, blocks, guidance = settings(way)
            network = ReusingNetwork(
                denoise.module,
                texts=texts,
                guidance=request.guidance,
                latent_THW=shape[2:],
                fps=request.fps,
                blocks=blocks,
                reuse=guidance,
            )
            sampler = SAMPLERS[request.sampler]
            network.last = sampler.num_calls(num_steps)
            denoiser = EdmDenoiser(network, card.sigma_data)
            latent = sampler.sample(denoiser, noise, num_steps=num_steps) / card.sigma_data
        with self.tokenizer as tokenizer:
            return tokenizer.decode(latent), network.computed


def settings(way: str) -> tuple[int, int, int]:
    """Steps; one of how many calls computes the layers; one of how many the branch without the prompt."""
    kind, _, number = way.partition(" ")
    if number == "steps":
        return int(kind), 1, 1
    return ALL_STEPS, *{"blocks": (int(number), 1), "guidance": (1, int(number))}[kind]


class ReusingNetwork:
    """(scaled x, c_noise) -> guided F, some of it from the calls before."""

    def __init__(
        self,
        network: DiT,
        *,
        texts: list[Tensor],
        guidance: float,
        latent_THW: tuple[int, int, int],
        fps: float,
        blocks: int,
        reuse: int,
    ) -> None:
        self.network, self.guidance, self.blocks, self.reuse = network, guidance, blocks, reuse
        self.texts = [network.encode_text(text_BLD) for text_BLD in texts]
        self.positions = network.positions(latent_THW, fps=fps)
        self.calls = self.computed = 0
        self.last = 0
        """The number of the last call, which is computed."""
        self.added: dict[int, Tensor] = {}
        """By the layers to the tokens, of each branch."""
        self.difference: Tensor | None = None
        """Of the branches."""

    def __call__(self, x_BCTHW: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += 1
        modulation = self.network.modulate(c_noise.reshape(1))
        with_prompt = self._branch(0, x_BCTHW, modulation).float()
        if self._computes(self.reuse) or self.difference is None:
            without = self._branch(1, x_BCTHW, modulation).float()
            self.difference = with_prompt - without
        else:
            without = with_prompt - self.difference
        return guided(with_prompt, without, self.guidance)

    def _computes(self, one_of: int) -> bool:
        later = self.calls - ALWAYS_FIRST
        return later <= 0 or later % one_of == 0 or self.calls == self.last

    def _branch(self, branch: int, x_BCTHW: Tensor, modulation: NetworkModulation) -> Tensor:
        """As DiT.forward, on one rank."""
        network, positions = self.network, self.positions
        runs = network.runs_of(modulation, positions)
        embedded = network.embed_patches(x_BCTHW.to(network.dtype))
        if self._computes(self.blocks) or branch not in self.added:
            self.computed += 1
            hidden = embedded
            for layer, arguments in network.layer_calls(modulation, self.texts[branch], positions, runs):
                hidden = layer(hidden, **arguments)
            self.added[branch] = hidden - embedded
        else:
            hidden = embedded + self.added[branch]
        tokens = network.final_layer(hidden, modulation.final, runs)
        return unpatchify(tokens, grid_THW=positions.grid_THW, patch=network.shape.patch_size)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | saves | PSNR, dB |", "|---|---|---|"]
    for row in rows:
        values = ", ".join(f"{value:.1f}" for value in row["psnr"])
        lines.append(f"| {row['way']} | {row['saves']:.2f} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
