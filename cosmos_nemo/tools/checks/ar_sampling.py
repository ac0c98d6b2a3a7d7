"""Tokens drawn from recorded exponential numbers. No network: the file's own dtype whatever --dtype says."""

from typing import Any

from cosmos_nemo.sampling.tokens import TokenSampling, draw, probabilities
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Per case the token of each video and, where the file has them, the probabilities of all."""
    for number, one in enumerate(case["cases"]):
        inputs, sampling = f"inputs.case{number}", _sampling(one)
        logits_BV = tensors[f"{inputs}.logits"][:, -1].to(options.device)
        exponentials_BV = logits_BV  # without effect at temperature 0, for which the file has none
        if not sampling.is_greedy:
            order = "vocab" if sampling.top_p is None else "sorted"
            exponentials_BV = tensors[f"{inputs}.exponential_noise_in_{order}_order"].to(options.device)
        yield f"case{number}.token", draw(logits_BV, sampling, exponentials_BV)[:, None]
        if f"outputs.case{number}.probs" in tensors:
            yield f"case{number}.probs", probabilities(logits_BV, sampling)


def _sampling(one: dict[str, Any]) -> TokenSampling:
    return TokenSampling(one["temperature"], top_p=one.get("top_p"), top_k=one.get("top_k"))
