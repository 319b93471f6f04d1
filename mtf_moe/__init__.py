"""Hierarchical mixture of experts for Mesh TensorFlow."""

import importlib.util

# Without TensorFlow there is `xla`, which runs what was exported elsewhere.
if importlib.util.find_spec("tensorflow"):
  from mtf_moe import compat  # isort: skip  (must precede mesh_tensorflow)
  from mtf_moe import gating
  from mtf_moe import moe
  from mtf_moe.experts import feed_forward
  from mtf_moe.grouping import _split_into_groups
  from mtf_moe.hparams import Level
  from mtf_moe.hparams import MoeHparams
  from mtf_moe.layer import transformer_moe_layer
  from mtf_moe.layer import transformer_moe_layer_v1
  from mtf_moe.layer import transformer_moe_layer_v2
  from mtf_moe.moe import _top_2_gating
  from mtf_moe.transformer_layers import MoE
  from mtf_moe.transformer_layers import MoE1D
  from mtf_moe.transformer_layers import MoE2D

  __all__ = [
      "Level",
      "MoE",
      "MoE1D",
      "MoE2D",
      "MoeHparams",
      "_split_into_groups",
      "_top_2_gating",
      "compat",
      "feed_forward",
      "gating",
      "moe",
      "transformer_moe_layer",
      "transformer_moe_layer_v1",
      "transformer_moe_layer_v2",
  ]
