"""What layers have recorded of themselves, without a model around them."""

import mesh_tensorflow as mtf

from mtf_moe import layer_records
from mtf_moe import levels
from mtf_moe.hparams import MoeHparams
from mtf_moe.mesh_split import MeshSplit
from mtf_moe.run.layer_facts import LayerFacts


def layer(scope, called, num_experts=(2, 3), **settings) -> LayerFacts:
  """The facts of a layer of 4 x ... x 4 x 16 tokens.

  Args:
    scope: its variable scope.
    called: how it is called in gin, or None.
    num_experts: of its levels.
    **settings: further hyperparameters, without "moe_"; with `levels` in them,
      a layer whose levels have settings of their own.
  """
  if "levels" not in settings:
    settings["num_experts"] = num_experts
  hparams = MoeHparams(
      **{f"moe_{name}": value for name, value in settings.items()})
  dims = [mtf.Dimension(name, 4)
          for name in levels.batch_names(len(hparams.levels))]
  length, mesh = mtf.Dimension("length", 16), MeshSplit(None, None)
  return LayerFacts.of(layer_records.LayerRecord(
      scope, called, tuple(levels.size(dims, length, hparams, True, mesh)),
      hparams, tuple(dims), length, mesh))
