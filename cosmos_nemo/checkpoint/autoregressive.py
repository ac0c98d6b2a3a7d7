"""The released autoregressive models and what each of them needs, by size.

Standard library only. Source: spec/predict1-autoregressive.md, 8.
"""

from collections.abc import Sequence

from cosmos_nemo.checkpoint.released import (
    HubFiles,
    diffusion_decoder,
    discrete_tokenizer,
    guardrail,
    network,
    text_encoder,
    text_guard,
    video_tokenizer,
)

MODELS = {
    "4B": "Cosmos-Predict1-4B",
    "5B": "Cosmos-Predict1-5B-Video2World",
    "12B": "Cosmos-Predict1-12B",
    "13B": "Cosmos-Predict1-13B-Video2World",
}
"""Size -> the name of the model, and of its repository below nvidia/."""
_READ_TEXT = ("5B", "13B")


def files_of(sizes: Sequence[str]) -> list[HubFiles]:
    """The repositories that models of these sizes need, the networks first.

    Only those that read a prompt need T5 and Llama Guard; the released script fetches T5 for all.
    """
    first = MODELS[sizes[0]]
    networks = [network(f"nvidia/{MODELS[size]}", model=MODELS[size]) for size in dict.fromkeys(sizes)]
    shared = [
        discrete_tokenizer("nvidia/Cosmos-Tokenize1-DV8x16x16-720p", model=first),
        diffusion_decoder("nvidia/Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p", model=first),
        video_tokenizer("nvidia/Cosmos-Tokenize1-CV8x8x8-720p", model=first),
        guardrail("nvidia/Cosmos-Guardrail1", model=first),
    ]
    readers = [MODELS[size] for size in sizes if size in _READ_TEXT]
    if readers:
        shared += [
            text_encoder("google-t5/t5-11b", model=readers[0]),
            text_guard("meta-llama/Llama-Guard-3-8B", model=readers[0]),
        ]
    return networks + shared
