"""Hierarchical mixture of experts for Mesh TensorFlow."""

from mtf_moe import compat  # isort: skip  (must precede mesh_tensorflow)
from mtf_moe.experts import feed_forward
from mtf_moe.gating.top_2 import _top_2_gating
from mtf_moe.grouping import _split_into_groups
from mtf_moe.hparams import MoeHparams
from mtf_moe.layer import transformer_moe_layer_v2
from mtf_moe.transformer_layers import MoE2D

__all__ = [
    "MoE2D",
    "MoeHparams",
    "_split_into_groups",
    "_top_2_gating",
    "compat",
    "feed_forward",
    "transformer_moe_layer_v2",
]
