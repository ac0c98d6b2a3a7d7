"""Megatron's linears without bias, split over the tensor parallel ranks by their outputs or their inputs."""

from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn


def column(
    linear: type | None, inputs: int, outputs: int, config: TransformerConfig, groups: ProcessGroupCollection
) -> nn.Module:
    """[..., inputs] -> this rank's part of [..., outputs]: its own heads, or its rows of the vocabulary.

    linear: the back end's class of column parallel linears; `outputs` must divide by the ranks.
    """
    form = {"init_method": config.init_method, "gather_output": False}
    return _linear(linear, inputs, outputs, config, groups, **form)


def row(
    linear: type | None, inputs: int, outputs: int, config: TransformerConfig, groups: ProcessGroupCollection
) -> nn.Module:
    """This rank's part of [..., inputs] -> [..., outputs]: what the ranks' heads make is added up.

    linear: the back end's class of row parallel linears; `inputs` must divide by the ranks.
    """
    form = {"init_method": config.output_layer_init_method, "input_is_parallel": True}
    return _linear(linear, inputs, outputs, config, groups, **form)


def _linear(
    linear: type | None,
    inputs: int,
    outputs: int,
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    **form: Any,
) -> nn.Module:
    return build_module(
        linear,
        inputs,
        outputs,
        config=config,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
        tp_group=groups.tp,
        **form,
    )
