import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cosmos_nemo.checkpoint.convert import lazy_network
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.writer import write_diffusers, write_safetensors


def test_the_library_reads_upstreams_tensors(tmp_path, lazy, shape, predict1, assert_equal):
    write_safetensors(tmp_path / "new", lazy, shape=shape)
    upstream = {
        name: tensor for name, tensor in predict1.items() if "logvar" not in name and ".seq" not in name
    }
    assert_equal(load_file(tmp_path / "new" / "model.safetensors"), upstream)


def test_the_file_says_that_torch_wrote_it(tmp_path, lazy, shape):
    write_safetensors(tmp_path / "new", lazy, shape=shape)
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_values_of_several_types_keep_them(tmp_path, lazy, shape):
    name = "final_layer.linear.weight"
    half = lazy[name].read().to(torch.bfloat16)
    write_safetensors(tmp_path / "new", lazy | {name: LazyTensor.of(half)}, shape=shape)
    read = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(read["net." + name], half)
    assert read["net.affline_norm.weight"].dtype == torch.float32


def test_overrides_become_card_json_beside(tmp_path, lazy, shape):
    write_safetensors(tmp_path / "new", lazy, shape=shape, card_overrides={"num_steps": 4})
    assert json.loads((tmp_path / "new" / "card.json").read_text()) == {"num_steps": 4}


@pytest.mark.parametrize("file", ["predict1_dit_tiny", "predict1_dit_video_tiny"])
def test_diffusers_loads_the_folder_and_makes_the_reference_output(tmp_path, golden, shape, file):
    from diffusers import CosmosTransformer3DModel

    tensors = load_file(golden / f"{file}.safetensors")
    shape = replace(shape, takes_given_mask="video" in file)
    checkpoint = open_checkpoint(golden / f"{file}.safetensors").under("weights.")
    rules = network_rules(shape, checkpoint)
    write_diffusers(tmp_path / "new", lazy_network(checkpoint, rules=rules), shape=shape)
    model, report = CosmosTransformer3DModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # diffusers resizes the padding mask with torchvision, which is not needed here: it goes in as a channel.
    model.register_to_config(concat_padding_mask=False)
    x, padding = tensors["inputs.x"], tensors["inputs.padding_mask"]
    channel = torch.nn.functional.interpolate(padding, size=x.shape[-2:])[:, :, None].expand(
        -1, -1, x.shape[2], -1, -1
    )
    given = [tensors["inputs.condition_video_input_mask"]] if shape.takes_given_mask else []
    with torch.no_grad():
        (output,) = model(
            torch.cat([x, *given, channel], dim=1),
            tensors["inputs.timesteps"],
            tensors["inputs.crossattn_emb"],
            fps=24,
            return_dict=False,
        )
    reference = tensors["outputs.final"]
    assert (output - reference).abs().max() < 2e-5 * reference.std()
