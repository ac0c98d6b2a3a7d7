"""The golden weights in every layout, and a file of Megatron's own making."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.convert import convert, lazy_network
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"
SHAPE = DiTShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    ffn_hidden_size=256,
    adaln_lora_dim=16,
    text_dim=32,
    max_latent_frames=16,
    max_latent_height=32,
    max_latent_width=32,
)


@pytest.fixture
def shape():
    return SHAPE


@pytest.fixture
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def predict1():
    """Upstream name -> tensor, as model.pt holds them (with the extras a loader must ignore)."""
    tensors = load_file(GOLDEN / "predict1_dit_tiny.safetensors")
    return {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}


@pytest.fixture(scope="session")
def network():
    """Our name -> tensor."""
    checkpoint = open_checkpoint(GOLDEN / "nemo_text_zarr")
    return {name: rule.read(checkpoint).clone() for name, rule in network_rules(SHAPE, checkpoint).items()}


@pytest.fixture
def lazy(network):
    return {name: LazyTensor.of(tensor) for name, tensor in network.items()}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory, predict1):
    """Layout -> path of the golden weights in it."""
    root = tmp_path_factory.mktemp("layouts")
    save_file(predict1, root / "net.safetensors")
    torch.save(predict1, root / "model.pt")
    torch.save({"model": predict1, "iteration": 7}, root / "wrapped.pt")
    torch.save(predict1, root / "legacy.pt", _use_new_zipfile_serialization=False)
    bare = {name.removeprefix("net."): tensor for name, tensor in predict1.items()}
    torch.jit.save(script_of(bare), root / "network.jit")
    convert(GOLDEN / "nemo_text_zarr", root / "diffusers", to="diffusers")
    convert(GOLDEN / "nemo_text_zarr", root / "written", to="nemo")
    write_shards(root / "sharded", predict1)
    return {
        "zarr": GOLDEN / "nemo_text_zarr",
        "torch_dist": GOLDEN / "nemo_text_torch_dist",
        "torch_dist weights": GOLDEN / "nemo_text_torch_dist" / "weights",
        "torch_dist of ours": root / "written",
        "safetensors": root / "net.safetensors",
        "safetensors shards": root / "sharded",
        "model.pt": root / "model.pt",
        "wrapped model.pt": root / "wrapped.pt",
        "legacy model.pt": root / "legacy.pt",
        "TorchScript": root / "network.jit",
        "diffusers": root / "diffusers",
    }


LAYOUTS = (
    "zarr",
    "torch_dist",
    "torch_dist weights",
    "torch_dist of ours",
    "safetensors",
    "safetensors shards",
    "model.pt",
    "wrapped model.pt",
    "legacy model.pt",
    "TorchScript",
    "diffusers",
)


@pytest.fixture(params=LAYOUTS)
def any_layout(request, layouts):
    """The path of the golden weights, in one layout after the other."""
    return layouts[request.param]


class _Holder(torch.nn.Module):
    pass


def script_of(tensors):
    """A TorchScript module whose state has these names."""
    root = _Holder()
    for name, tensor in tensors.items():
        module = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, _Holder())
            module = getattr(module, part)
        module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(root)


def write_shards(folder, tensors, count=2):
    """Several safetensors files with the index that names them."""
    folder.mkdir()
    names = sorted(tensors)
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::count]}, folder / file)
    weight_map = {name: files[i % count] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def zarr(tmp_path):
    """A copy of the golden zarr folder, to be damaged."""
    return shutil.copytree(GOLDEN / "nemo_text_zarr", tmp_path / "nemo")


@pytest.fixture
def torch_dist(tmp_path):
    """A copy of the golden torch_dist folder (its weights), to be damaged."""
    return shutil.copytree(GOLDEN / "nemo_text_torch_dist", tmp_path / "step=1") / "weights"


@pytest.fixture
def one_rank():
    """A process group of one, as Megatron's own reader and writer need it."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def read_network(path, shape=SHAPE):
    """Our name -> tensor, from a checkpoint of any layout."""
    checkpoint = open_checkpoint(path)
    rules = network_rules(shape, checkpoint)
    return {name: tensor.read() for name, tensor in lazy_network(checkpoint, rules=rules).items()}


@pytest.fixture(name="read_network")
def _read_network():
    return read_network


@pytest.fixture
def assert_equal():
    """Asserts that two mappings of names hold the same tensors, bit for bit."""

    def check(ours, theirs):
        assert ours.keys() == theirs.keys()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not different
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)

    return check
