"""The commands of the five documents this project came from, as data.

Flags and values are exactly those of the documents, in their order. Shell variables in the arguments stand
here with the value that they hold at that point of the document; those of the environment assignments stand
as written. Left out: logging in to the hub, cloning, starting the container.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SeedCommand:
    """One command line: `environment` assignments, `launcher`, `script` (path or -m module upstream), `argv`.

    `hidden`: the document holds the command inside a comment, so that its rendered page does not show it.
    """

    document: str
    title: str
    script: str
    argv: tuple[str, ...]
    launcher: tuple[str, ...] = ("python",)
    environment: dict[str, str] = field(default_factory=dict)
    hidden: bool = False

    @property
    def name(self) -> str:
        return f"{self.document} {self.title}"


_UPSTREAM_ENVIRONMENT = {"CUDA_HOME": "$CONDA_PREFIX", "PYTHONPATH": "$(pwd)"}
_EIGHT_RANKS = ("torchrun", "--nproc_per_node=8")

_TEXT2WORLD = "cosmos_predict1/diffusion/inference/text2world.py"
_AUTOREGRESSIVE = "cosmos_predict1/autoregressive/inference/base.py"
_WORLD_INTERPOLATOR = "cosmos_predict1/diffusion/inference/world_interpolator.py"
_VIDEO2WORLD = "cosmos_predict2/diffusion/inference/video2world.py"
_GENERAL = "cosmos1/models/diffusion/nemo/inference/general.py"
_DOWNLOAD_DIFFUSION = "scripts/download_diffusion_checkpoints.py"

WAREHOUSE_PROMPT = (
    "A sleek, humanoid robot stands in a vast warehouse filled with neatly stacked cardboard boxes on "
    "industrial shelves. The robot's metallic body gleams under the bright, even lighting, highlighting "
    "its futuristic design and intricate joints. A glowing blue light emanates from its chest, adding a "
    "touch of advanced technology. The background is dominated by rows of boxes, suggesting a highly "
    "organized storage system. The floor is lined with wooden pallets, enhancing the industrial setting. "
    "The camera remains static, capturing the robot's poised stance amidst the orderly environment, with "
    "a shallow depth of field that keeps the focus on the robot while subtly blurring the background for "
    "a cinematic effect."
)

BUS_PROMPT = (
    "A nighttime city bus terminal gradually shifts from stillness to subtle movement. At first, multiple "
    "double-decker buses are parked under the glow of overhead lights, with a central bus labeled “87D” "
    "facing forward and stationary. As the video progresses, the bus in the middle moves ahead slowly, "
    "its headlights brightening the surrounding area and casting reflections onto adjacent vehicles. The "
    "motion creates space in the lineup, signaling activity within the otherwise quiet station. It then "
    "comes to a smooth stop, resuming its position in line. Overhead signage in Chinese characters "
    "remains illuminated, enhancing the vibrant, urban night scene."
)

SHORT_BUS_PROMPT = "A nighttime city bus terminal."

NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, "
    "over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, "
    "underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky "
    "movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special "
    "effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and "
    "flickering. Overall, the video is of poor quality."
)

TEAL_ROBOT_PROMPT = (
    "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot as the robot chops "
    "vegetables on a worn wooden cutting board. Copper pans hang from an overhead rack, catching glints "
    "of afternoon light, while a well-loved cast iron skillet sits on the stovetop next to scattered "
    "measuring spoons and a half-empty bottle of olive oil."
)

POST_TRAINED_CHECKPOINT = (
    "nemo_experiments/cosmos_diffusion_7b_text2world_finetune/default/2024-12-17_01-28-03/checkpoints/"
    "epoch=39-step=199/weights"
)

_TEXT2WORLD_COMMANDS = (
    SeedCommand(
        document="000",
        title="download",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_DOWNLOAD_DIFFUSION,
        argv=("--model_sizes", "7B", "14B", "--model_types", "Text2World", "--checkpoint_dir", "checkpoints"),
    ),
    SeedCommand(
        document="000",
        title="help",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_TEXT2WORLD,
        argv=("--help",),
    ),
    SeedCommand(
        document="000",
        title="example 1: single generation",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_TEXT2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict1-7B-Text2World"),
            *("--prompt", WAREHOUSE_PROMPT),
            "--offload_prompt_upsampler",
            *("--video_save_name", "diffusion-text2world-7b"),
        ),
    ),
    SeedCommand(
        document="000",
        title="example 2: single generation on the 14B model with model offloading",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_TEXT2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict1-14B-Text2World"),
            *("--prompt", WAREHOUSE_PROMPT),
            "--offload_tokenizer",
            "--offload_diffusion_transformer",
            "--offload_text_encoder_model",
            "--offload_prompt_upsampler",
            "--offload_guardrail_models",
            *("--video_save_name", "diffusion-text2world-14b"),
        ),
    ),
    SeedCommand(
        document="000",
        title="example 3: single generation with multi-GPU inference",
        environment=_UPSTREAM_ENVIRONMENT,
        launcher=_EIGHT_RANKS,
        script=_TEXT2WORLD,
        argv=(
            *("--num_gpus", "8"),
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict1-7B-Text2World"),
            *("--prompt", WAREHOUSE_PROMPT),
            "--offload_prompt_upsampler",
            *("--video_save_name", "diffusion-text2world-7b-8gpu"),
        ),
    ),
    SeedCommand(
        document="000",
        title="example 4: batch generation",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_TEXT2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict1-7B-Text2World"),
            *("--batch_input_path", "assets/diffusion/batch_inputs/text2world.jsonl"),
            "--offload_prompt_upsampler",
            *("--video_save_folder", "diffusion-text2world-7b-batch"),
        ),
    ),
)

_AUTOREGRESSIVE_COMMANDS = (
    SeedCommand(
        document="001",
        title="download",
        environment=_UPSTREAM_ENVIRONMENT,
        script="scripts/download_autoregressive_checkpoints.py",
        argv=("--model_sizes", "4B", "12B", "--checkpoint_dir", "checkpoints"),
    ),
    SeedCommand(
        document="001",
        title="help",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_AUTOREGRESSIVE,
        argv=("--help",),
    ),
    SeedCommand(
        document="001",
        title="example 1: single generation",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_AUTOREGRESSIVE,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--ar_model_dir", "Cosmos-Predict1-4B"),
            *("--input_type", "video"),
            *("--input_image_or_video_path", "assets/autoregressive/input.mp4"),
            *("--top_p", "0.8"),
            *("--temperature", "1.0"),
            "--offload_diffusion_decoder",
            "--offload_tokenizer",
            *("--video_save_name", "autoregressive-4b"),
        ),
    ),
    SeedCommand(
        document="001",
        title="example 2: single generation with multi-GPU inference",
        environment=_UPSTREAM_ENVIRONMENT,
        launcher=_EIGHT_RANKS,
        script=_AUTOREGRESSIVE,
        argv=(
            *("--num_gpus", "8"),
            *("--checkpoint_dir", "checkpoints"),
            *("--ar_model_dir", "Cosmos-Predict1-4B"),
            *("--input_type", "video"),
            *("--input_image_or_video_path", "assets/autoregressive/input.mp4"),
            *("--top_p", "0.8"),
            *("--temperature", "1.0"),
            "--offload_diffusion_decoder",
            "--offload_tokenizer",
            *("--video_save_name", "autoregressive-4b-8gpu"),
        ),
    ),
    SeedCommand(
        document="001",
        title="example 3: batch generation",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_AUTOREGRESSIVE,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--ar_model_dir", "Cosmos-Predict1-4B"),
            *("--batch_input_path", "assets/diffusion/batch_inputs/text2world.jsonl"),
            *("--top_p", "0.8"),
            *("--temperature", "1.0"),
            "--offload_diffusion_decoder",
            "--offload_tokenizer",
            *("--video_save_folder", "autoregressive-4b-batch"),
        ),
    ),
)

_WORLD_INTERPOLATOR_COMMANDS = (
    SeedCommand(
        document="002",
        title="download",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_DOWNLOAD_DIFFUSION,
        argv=(
            "--model_sizes",
            "7B",
            "14B",
            "--model_types",
            "Video2World",
            "--checkpoint_dir",
            "checkpoints",
        ),
    ),
    SeedCommand(
        document="002",
        title="help",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_WORLD_INTERPOLATOR,
        argv=("--help",),
    ),
    SeedCommand(
        document="002",
        title="example 1: single generation",
        environment={"CUDA_VISIBLE_DEVICES": "1"},
        launcher=("python3", "-m"),
        script="cosmos_predict1.diffusion.inference.world_interpolator",
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict1-7B-WorldInterpolator"),
            *("--input_image_or_video_path", "assets/diffusion/interpolation_example.mp4"),
            *("--num_input_frames", "1"),
            "--offload_prompt_upsampler",
            *("--video_save_name", "diffusion-world-interpolator-7b"),
            *("--num_video_frames", "10"),
            *("--num_frame_pairs", "2"),
        ),
    ),
)

_VIDEO2WORLD_COMMANDS = (
    SeedCommand(
        document="003",
        title="download",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_DOWNLOAD_DIFFUSION,
        argv=(
            "--model_sizes",
            "2B",
            "14B",
            "--model_types",
            "Video2World",
            "--checkpoint_dir",
            "checkpoints",
        ),
    ),
    SeedCommand(
        document="003",
        title="help",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        argv=("--help",),
    ),
    SeedCommand(
        document="003",
        title="example 1: single generation on the 2B model",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--input_image_or_video_path", "assets/video2world/input0.jpg"),
            *("--num_input_frames", "1"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-2B-Video2World"),
            "--offload_prompt_upsampler",
            "--disable_prompt_upsampler",
            "--disable_guardrail",
            *("--prompt", BUS_PROMPT),
            *("--negative_prompt", NEGATIVE_PROMPT),
            *("--height", "432", "--width", "768", "--num_video_frames", "81"),
            *("--num_steps", "35"),
            *("--video_save_name", "video2world_2b"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 1: single generation with the prompt upsampler",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--prompt_upsampler_dir", "Qwen/Qwen2.5-VL-7B-Instruct"),
            *("--input_image_or_video_path", "assets/video2world/input0.jpg"),
            *("--num_input_frames", "1"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-2B-Video2World"),
            "--offload_prompt_upsampler",
            "--disable_guardrail",
            *("--prompt", SHORT_BUS_PROMPT),
            *("--negative_prompt", NEGATIVE_PROMPT),
            *("--height", "432", "--width", "768", "--num_video_frames", "81"),
            *("--num_steps", "35"),
            *("--video_save_name", "video2world_2b_prompt_upsampled"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 2: single generation on the 14B model",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--input_image_or_video_path", "assets/video2world/input0.jpg"),
            *("--num_input_frames", "1"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-14B-Video2World"),
            "--offload_prompt_upsampler",
            "--disable_prompt_upsampler",
            "--disable_guardrail",
            *("--prompt", SHORT_BUS_PROMPT),
            *("--negative_prompt", NEGATIVE_PROMPT),
            *("--height", "432", "--width", "768", "--num_video_frames", "81"),
            *("--num_steps", "35"),
            *("--video_save_name", "video2world_14b"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 2: single generation on the 14B model with model offloading",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        hidden=True,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-14B-Video2World"),
            *("--input_image_or_video_path", "assets/diffusion/video2world_input0.jpg"),
            *("--num_input_frames", "1"),
            "--offload_tokenizer",
            "--offload_diffusion_transformer",
            "--offload_text_encoder_model",
            "--offload_prompt_upsampler",
            "--offload_guardrail_models",
            *("--video_save_name", "diffusion-video2world-14b"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 3: single generation with multi-GPU inference",
        environment=_UPSTREAM_ENVIRONMENT,
        launcher=_EIGHT_RANKS,
        script=_VIDEO2WORLD,
        hidden=True,
        argv=(
            *("--num_gpus", "8"),
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-2B-Video2World"),
            *("--input_image_or_video_path", "assets/diffusion/video2world_input0.jpg"),
            *("--num_input_frames", "1"),
            "--offload_prompt_upsampler",
            *("--video_save_name", "diffusion-video2world-2b"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 4: batch generation",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        hidden=True,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-2B-Video2World"),
            *("--batch_input_path", "assets/diffusion/batch_inputs/video2world_ps.jsonl"),
            *("--num_input_frames", "9"),
            "--offload_prompt_upsampler",
            *("--video_save_folder", "diffusion-video2world-2b-batch"),
        ),
    ),
    SeedCommand(
        document="003",
        title="example 5: batch generation without prompt upsampler",
        environment=_UPSTREAM_ENVIRONMENT,
        script=_VIDEO2WORLD,
        hidden=True,
        argv=(
            *("--checkpoint_dir", "checkpoints"),
            *("--diffusion_transformer_dir", "Cosmos-Predict2-2B-Video2World"),
            *("--batch_input_path", "assets/diffusion/batch_inputs/video2world_wo_ps.jsonl"),
            *("--num_input_frames", "9"),
            "--disable_prompt_upsampler",
            *("--video_save_folder", "diffusion-video2world-2b-batch-wo-ps"),
        ),
    ),
)

_NEMO_COMMANDS = (
    SeedCommand(
        document="004",
        title="download",
        script="cosmos1/models/diffusion/nemo/download_diffusion_nemo.py",
        argv=(),
    ),
    SeedCommand(
        document="004",
        title="base model",
        environment={"NVTE_FUSED_ATTN": "0"},
        launcher=("torchrun", "--nproc_per_node=1"),
        script=_GENERAL,
        argv=(
            *("--model", "Cosmos-1.0-Diffusion-7B-Text2World"),
            *("--cp_size", "1"),
            *("--num_devices", "1"),
            *("--video_save_path", "Cosmos-1.0-Diffusion-7B-Text2World.mp4"),
            *("--guidance", "7"),
            *("--seed", "1"),
            *("--prompt", TEAL_ROBOT_PROMPT),
            "--enable_prompt_upsampler",
        ),
    ),
    SeedCommand(
        document="004",
        title="post-trained model",
        environment={"NVTE_FUSED_ATTN": "0"},
        launcher=_EIGHT_RANKS,
        script=_GENERAL,
        argv=(
            *("--model", "Cosmos-1.0-Diffusion-7B-Text2World"),
            *("--nemo_checkpoint", POST_TRAINED_CHECKPOINT),
            *("--cp_size", "1"),
            *("--num_devices", "1"),
            *("--video_save_path", "Cosmos-1.0-Diffusion-7B-Text2World.mp4"),
            *("--guidance", "7"),
            *("--seed", "1"),
            *("--prompt", TEAL_ROBOT_PROMPT),
            *("--subject_name", "teal robot"),
            "--enable_prompt_upsampler",
        ),
    ),
)

COMMANDS = (
    *_TEXT2WORLD_COMMANDS,
    *_AUTOREGRESSIVE_COMMANDS,
    *_WORLD_INTERPOLATOR_COMMANDS,
    *_VIDEO2WORLD_COMMANDS,
    *_NEMO_COMMANDS,
)


def commands_of(document: str, *, script: str | None = None) -> tuple[SeedCommand, ...]:
    """The commands of one document ("000" to "004"), or those of them that run `script`."""
    return tuple(c for c in COMMANDS if c.document == document and script in (None, c.script))
