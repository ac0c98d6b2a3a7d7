"""From numbers and a back end to the network, unfilled."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.models.common.dit.spec import layer_spec, transformer_config
from cosmos_nemo.models.cosmos1_dit.model import Cosmos1DiT
from cosmos_nemo.models.predict2_dit.model import Predict2DiT
from cosmos_nemo.models.token_dit.model import TokenDiT

_NETWORKS: dict[Family, type[DiT]] = {
    Family.COSMOS1: Cosmos1DiT,
    Family.PREDICT2: Predict2DiT,
    Family.TOKEN_DECODER: TokenDiT,
}


def build_network(
    shape: DiTShape,
    *,
    backend: Backend,
    pg_collection: ProcessGroupCollection,
    device: torch.device,
    dtype: torch.dtype,
    rope_dtype: torch.dtype = torch.float32,
) -> DiT:
    """The network with this rank's share of the parameters allocated on `device`, their values undefined."""
    with torch.device("meta"):
        network = _NETWORKS[shape.family](
            shape,
            config=transformer_config(shape, backend=backend, pg_collection=pg_collection, dtype=dtype),
            layer=layer_spec(shape, backend),
            rms_norm=backend.rms_norm,
            pg_collection=pg_collection,
            rope_dtype=rope_dtype,
        )
    return network.to_empty(device=device).requires_grad_(False).eval()
