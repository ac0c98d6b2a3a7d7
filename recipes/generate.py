"""`generate`: one video, image or batch, as the doors of inference/ make them; a factory for each card."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import fiddle
import nemo_run as run

from cosmos_nemo.catalog import CARDS, ModelCard, Task, find_card
from cosmos_nemo.request import (
    OFFLOADABLE,
    OFFLOADABLE_OF_TOKENS,
    REQUESTS,
    RequestError,
    Setup,
    Text2WorldRequest,
    card_values,
    validate_request,
    validate_setup,
)
from cosmos_nemo_recipes.names import factory_name

FIELD_NAMES = {
    "--prompt": "request.prompt",
    "--negative_prompt": "request.negative_prompt",
    "--subject_name": "request.subject_name",
    "--height": "request.height",
    "--width": "request.width",
    "--num_video_frames": "request.num_frames",
    "--fps": "request.fps",
    "--num_steps": "request.num_steps",
    "--guidance": "request.guidance",
    "--sampler": "request.sampler",
    "--seed": "request.seed",
    "--video_save_path": "request.video_path",
    "--conditioned_image_or_video_path": "request.visual_input",
    "--num_input_frames": "request.num_input_frames",
    "--num_overlap_frames": "request.num_overlap_frames",
    "--keep_input_size": "request.keeps_input_size",
    "--frame_stride": "request.frame_stride",
    "--frame_index_start": "request.frame_index_start",
    "--num_frame_pairs": "request.num_frame_pairs",
    "--draw_condition_noise": "request.draws_noise",
    "--temperature": "request.temperature",
    "--top_p": "request.top_p",
    "--top_k": "request.top_k",
    "--model": "setup.model",
    "--nemo_checkpoint": "setup.nemo_checkpoint",
    "--load_ema": "setup.averaged",
    "--cosmos_assets_dir": "setup.assets_dir",
    "--tokenizer_dir": "setup.tokenizer_dir",
    "--text_encoder_dir": "setup.text_encoder_dir",
    "--prompt_upsampler_dir": "setup.upsampler_dir",
    "--guardrail_dir": "setup.guardrail_dir",
    "--text_guard_dir": "setup.text_guard_dir",
    "--t5_cache_dir": "setup.t5_cache_dir",
    "--discrete_tokenizer_dir": "setup.discrete_tokenizer_dir",
    "--diffusion_decoder_dir": "setup.diffusion_decoder_dir",
    "--disable_diffusion_decoder": "setup.decodes_by_diffusion=false",
    "--batch_size": "setup.batch_size",
    "--enable_prompt_upsampler": "setup.upsamples=true",
    "--disable_prompt_upsampler": "setup.upsamples=false",
    "--word_limit_to_skip_upsampler": "setup.word_limit",
    "--disable_guardrail": "setup.guardrails=false",
    "--num_devices": "setup.num_devices",
    "--replicas": "setup.replicas",
    "--cp_size": "setup.cp_size",
    "--tensor_parallel": "setup.tensor_parallel",
    "--cfg_parallel": "setup.cfg_parallel",
    "--backend": "setup.backend",
    "--precision": "setup.precision",
    "--text_encoder_dtype": "setup.text_encoder_dtype",
    "--rope_dtype": "setup.rope_dtype",
    "--offload": "setup.offload",
    "--batch_input_path": "batch_input_path",
    "--video_save_folder": "video_save_folder",
    "--dry_run": "--dryrun",
}
"""What a recipe calls the flags of general.py, in the errors of whatever lies below."""
_FOLDER = Path("outputs")


def generate(
    setup: Setup,
    request: Text2WorldRequest,
    batch_input_path: Path | None = None,
    video_save_folder: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Makes the video or image of `request`, or those of a batch file, which have it in common.

    batch_input_path: a file of JSON lines; what a line leaves open is as in `request`. Its videos go to
    `video_save_folder`, outputs. SystemExit with the doors' exit status unless that is 0.
    """
    from cosmos_nemo.cli.invocation import Batch, Invocation
    from cosmos_nemo.launch import run as serve

    def asked() -> Invocation:
        folder = video_save_folder or _FOLDER
        batch = Batch(path=batch_input_path, folder=folder) if batch_input_path else None
        if batch is None and setup.replicas > 1:
            raise RequestError("--replicas shares the videos of a batch: it has no effect without one.")
        remarks: list[str] = []
        chosen = _chosen(setup, request, remark=remarks.append)
        return Invocation(setup=chosen, request=request, batch=batch, remarks=tuple(remarks), dry_run=dry_run)

    if status := serve(asked, flag_names=FIELD_NAMES):
        raise SystemExit(status)


def _chosen(setup: Setup, request: Text2WorldRequest, *, remark: Callable[[str], None]) -> Setup:
    """With the network for the request's size and rate, and every stage for `all` of setup.offload."""
    from cosmos_nemo.cli.variants import choose_variant

    named = find_card(setup.model)
    card = choose_variant(
        named,
        height=request.height,
        width=request.width,
        fps=request.fps,
        given=setup.nemo_checkpoint or Path(named.name),
        assets_dir=setup.assets_dir,
        remark=remark,
    )
    offload = frozenset(_stages(card)) if "all" in setup.offload else setup.offload
    return replace(setup, model=card.name, offload=offload)


def _stages(card: ModelCard) -> tuple[str, ...]:
    if card.task is Task.AUTOREGRESSIVE:
        return OFFLOADABLE_OF_TOKENS
    return tuple(
        stage for stage in OFFLOADABLE if card.task is not Task.TEXT2IMAGE or stage != "prompt_upsampler"
    )


def complete(task: run.Partial, given: Collection[str]) -> None:
    """Fills in what a batch, or an upsampler that looks at a frame, leaves open.

    RequestError for fields that exclude each other.

    given: names of the fields that a person set.
    """
    is_batch = task.batch_input_path is not None
    if "setup.model" in given:
        raise RequestError("setup.model is the factory's. Pass another --factory.")
    if not is_batch:
        if "video_save_folder" in given:
            raise RequestError("video_save_folder is for a batch: for one video pass request.video_path.")
        looks = "visual_input" in task.request.__signature_info__.parameters
        if task.setup.upsamples and looks and "prompt" not in fiddle.ordered_arguments(task.request):
            task.request.prompt = ""
        return
    for name in ("prompt", "visual_input", "video_path"):
        if f"request.{name}" in given:
            raise RequestError(f"request.{name} has no effect beside batch_input_path. Pass one of them.")
    request, folder = task.request, task.video_save_folder or _FOLDER
    task.video_save_folder = folder
    request.video_path = folder / request.video_path.name
    for name, unused in (("prompt", ""), ("visual_input", folder)):
        if name in request.__signature_info__.parameters:
            setattr(request, name, unused)


def check(task: run.Partial, *, sees_files: bool) -> None:
    """RequestError or CatalogError for what can be judged without weights, before a job is started for it.

    sees_files: whether the job has this machine's files.
    """
    values = fiddle.build(task).keywords
    setup, request = values["setup"], values["request"]
    setup = _chosen(setup, request, remark=lambda _: None)
    validate_setup(setup)
    path = values.get("batch_input_path")
    if path is None:
        validate_request(request, find_card(setup.model), prompt_is_made=setup.upsamples)
        path = getattr(request, "visual_input", None)
    if sees_files and path is not None and not path.is_file():
        raise RequestError(f"{path} does not exist, or is no file.")


def factories() -> dict[str, Callable[[], run.Partial]]:
    """Of every card, by name."""
    return {factory_name(card): _factory(card) for card in CARDS.values()}


def _factory(card: ModelCard) -> Callable[[], run.Partial]:
    def factory() -> run.Partial:
        kind = REQUESTS[card.task]
        path = Path(card.name + kind.suffixes[0])
        prompt = {"prompt": ""} if card.task is Task.AUTOREGRESSIVE else {}
        return run.Partial(
            generate,
            setup=run.Config(Setup, **_setup_values(card)),
            request=run.Config(kind, **card_values(card), **prompt, video_path=path),
        )

    factory.__name__ = factory_name(card)
    factory.__doc__ = f"{card.name}: {card.task.value}."
    return factory


def _setup_values(card: ModelCard) -> dict[str, object]:
    if card.task is not Task.AUTOREGRESSIVE:
        return {"model": card.name}
    return {
        "model": card.name,
        "tensor_parallel": None,
        "decodes_by_diffusion": card.has_diffusion_decoder,
    }
