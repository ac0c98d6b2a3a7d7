"""The prompt on its way from the request to the text encoder."""

from torch import Tensor

from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.skip import Skip


def prepare_prompt(
    request: Text2WorldRequest, *, text_guard: TextGuard | Skip, upsampler: PromptUpsampler | Skip
) -> str:
    """The text that the video is made of: judged, made longer, given its subject, and judged again.

    Blocked, ItemError or GuardrailUnavailable as the guard finds, ItemError or UpsamplerError as the
    upsampler does. The released scripts do not judge the subject.
    """
    with text_guard as judge:
        judge(request.prompt)
    with upsampler as upsample:
        prompt = with_subject(upsample(request.prompt), request.subject_name)
    if prompt != request.prompt:
        with text_guard as judge:
            judge(prompt)
    return prompt


def describe_image(
    request: Text2WorldRequest,
    image_HWC: Tensor | None,
    *,
    text_guard: TextGuard | Skip,
    upsampler: ImageUpsampler | Skip,
) -> str:
    """The text that a video goes on with: what the upsampler says of the image, else the prompt; judged.

    image: uint8 [H, W, 3]; None will do without an upsampler. With one the prompt has no influence. Raises
    as `prepare_prompt`.
    """
    if isinstance(upsampler, Skip):
        described = request.prompt
    else:
        assert image_HWC is not None
        with upsampler as describe:
            described = describe(image_HWC)
    prompt = with_subject(described, request.subject_name)
    with text_guard as judge:
        judge(prompt)
    return prompt


def refine_prompt(
    request: Text2WorldRequest, image_HWC: Tensor, *, text_guard: TextGuard | Skip, refiner: PromptRefiner
) -> str:
    """The prompt as the refiner rewrites it after looking at the image; both are judged.

    image: uint8 [H, W, 3]. An empty prompt leaves the refiner the image alone. Raises as `prepare_prompt`.
    """
    if request.prompt:
        with text_guard as judge:
            judge(request.prompt)
    with refiner as refine:
        prompt = with_subject(refine(request.prompt, image_HWC), request.subject_name)
    with text_guard as judge:
        judge(prompt)
    return prompt


def with_subject(prompt: str, subject_name: str) -> str:
    """`prompt`, after the phrase that post-training tied to its subject; unchanged without a subject.

    Comes after every other change of the prompt (spec/nemo-cosmos1.md, 1.2 step 4).
    """
    return f"A video of sks {subject_name}. {prompt}" if subject_name else prompt
