"""mesh_tensorflow's own two-level layer for its transformer, made to run."""

import gin
from mesh_tensorflow.transformer import moe


@gin.configurable("ReferenceMoE2D", module="tests")
class MoE2D(moe.MoE2D):
  """The reference's class, with the three attributes without which it crashes.

  As released, gin does not know it, and its first call raises AttributeError:
  its hyperparameters lack what `transformer_moe_layer_v2` reads. They get the
  defaults of the one-level class.

  The class has to be called MoE2D, since mesh_tensorflow makes its name part of
  the variables' names. Gin has to call it otherwise, or the MoE2D of a gin file
  could be either.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._hparams.moe_min_expert_capacity = 4
    self._hparams.moe_word_embed_mode = None
    self._hparams.moe_z_loss = None
