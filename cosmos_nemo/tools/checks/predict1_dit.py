"""One call of the Cosmos 1.0 / Predict1 network, and what it passes through."""

from pathlib import Path

from einops import rearrange
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import Checkpoint, LazyTensor, open_checkpoint
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import te_backend, torch_backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.models.common.rope import rope_angles
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Every output of the reference file, in the order the network makes them."""
    network = network_for(
        case["config"], weights=options.weights or inside(tensors, options), options=options
    )
    prefix = "inputs."
    inputs = {
        name.removeprefix(prefix): t.to(options.device)
        for name, t in tensors.items()
        if name.startswith(prefix)
    }
    yield from _parts(network, inputs)
    if "fps_alt" in inputs:
        yield "final_fps_alt", _final(network, inputs, fps=float(inputs["fps_alt"][0]))


def network_for(
    config: Case, *, weights: Path | Checkpoint, options: Options, shape: DiTShape | None = None
) -> DiT:
    """The network of a reference file's `config`, filled from `weights`: such a file, or any checkpoint.

    shape: if it is not what shape_of makes of the config.
    """
    shape = shape or shape_of(config)
    network = build_network(
        shape,
        backend=te_backend() if options.backend == "te" else torch_backend(),
        pg_collection=start_alone(options.device).collection,
        device=options.device,
        dtype=options.dtype,
    )
    checkpoint = _open(weights) if isinstance(weights, Path) else weights
    load_into(network, checkpoint=checkpoint, rules=network_rules(shape, checkpoint))
    return network


def shape_of(config: Case) -> DiTShape:
    """From the upstream class' arguments, whose image sizes are in latent cells."""
    width = config["model_channels"]
    assert config["mlp_ratio"] * width == int(config["mlp_ratio"] * width)
    return DiTShape(
        num_layers=config["num_blocks"],
        hidden_size=width,
        num_heads=config["num_heads"],
        ffn_hidden_size=int(config["mlp_ratio"] * width),
        adaln_lora_dim=config["adaln_lora_dim"],
        text_dim=config["crossattn_emb_channels"],
        latent_channels=config["out_channels"],
        takes_given_mask=config["in_channels"] > config["out_channels"],
        patch_size=config["patch_spatial"],
        max_latent_frames=config["max_frames"],
        max_latent_height=config["max_img_h"],
        max_latent_width=config["max_img_w"],
        rope_ratios_THW=tuple(config[f"rope_{axis}_extrapolation_ratio"] for axis in "thw"),
    )


def _parts(network: DiT, inputs: Tensors) -> Outputs:
    """The network's forward, spelled out, yielding after every piece."""
    latent_THW = (inputs["x"].shape[2], inputs["x"].shape[3], inputs["x"].shape[4])
    positions = network.positions(latent_THW, fps=float(inputs["fps"][0]))
    grid, batch = positions.grid_THW, len(inputs["x"])

    yield "rope_angles_L11D", _angles(network, latent_THW, fps=float(inputs["fps"][0]))
    assert positions.learned_s1D is not None
    learned = positions.learned_s1D.expand(-1, batch, -1)
    yield "extra_pos_emb_BTHWD", by_place(learned, grid)
    yield "timestep_sinusoid_BD", network.t_embedder[0](inputs["timesteps"])
    timestep, lora = network.embed_timestep(inputs["timesteps"])
    yield "affine_emb_BD", timestep
    yield "adaln_lora_B3D", lora

    hidden = network.embed_patches(
        inputs["x"].to(network.dtype),
        padding_mask_B1HW=inputs["padding_mask"],
        given_mask_B1THW=inputs.get("condition_video_input_mask"),
    )
    yield "x_embed_BTHWD", by_place(hidden, grid)
    modulation, text = network.modulate(inputs["timesteps"]), network.encode_text(inputs["crossattn_emb"])
    for index, (layer, arguments) in enumerate(network.layer_calls(modulation, text, positions, None)):
        after_video, after_text, hidden = layer.parts(hidden, **arguments)
        if index == 0:
            yield "block0_after_fa_BTHWD", by_place(after_video, grid)
            yield "block0_after_ca_BTHWD", by_place(after_text, grid)
            yield "block0_after_mlp_BTHWD", by_place(hidden, grid)
        yield f"block{index}_out_BTHWD", by_place(hidden, grid)
    # Through forward itself, so that what samples a video is checked and not only its pieces.
    yield "final", _final(network, inputs, fps=float(inputs["fps"][0]))


def _final(network: DiT, inputs: Tensors, *, fps: float) -> Tensor:
    latent_THW = (inputs["x"].shape[2], inputs["x"].shape[3], inputs["x"].shape[4])
    return network(
        inputs["x"],
        modulation=network.modulate(inputs["timesteps"]),
        text=network.encode_text(inputs["crossattn_emb"]),
        positions=network.positions(latent_THW, fps=fps),
        padding_mask_B1HW=inputs["padding_mask"],
        given_mask_B1THW=inputs.get("condition_video_input_mask"),
    )


def _angles(network: DiT, latent_THW: tuple[int, int, int], *, fps: float) -> Tensor:
    shape = network.shape
    t, h, w = latent_THW
    return rope_angles(
        (t, h // shape.patch_size, w // shape.patch_size),
        head_dim=shape.head_dim,
        ratios_THW=shape.rope_ratios_THW,
        fps=fps,
        base_fps=shape.base_fps,
    )


def by_place(tokens_SBD: Tensor, grid_THW: tuple[int, int, int]) -> Tensor:
    t, h, w = grid_THW
    return rearrange(tokens_SBD, "(t h w) b d -> b t h w d", t=t, h=h, w=w)


def _open(path: Path) -> Checkpoint:
    """A checkpoint; of a reference file, the weights in it."""
    checkpoint = open_checkpoint(path)
    inside = any(name.startswith("weights.") for name in checkpoint.names())
    return checkpoint.under("weights.") if inside else checkpoint


def inside(tensors: Tensors, options: Options) -> Checkpoint:
    """The weights that came with the reference."""
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint(options.folder, layout="safetensors", tensors=lazy).under("weights.")
