"""Hyperparameters that can be set after they were made, one at a time."""

from mtf_moe import foreign_hparams
from mtf_moe.hparams import MoeHparams


class ChangeableHparams(MoeHparams):
  """Hyperparameters that can be set one at a time, and are checked each time.

  What a layer of `transformer_layers` has as `self._hparams`, since those of
  mesh_tensorflow's layers can be changed, too.
  """

  def __setattr__(self, name, value):
    names = self.names()
    if name not in names:  # It is for another layer.
      foreign_hparams.check_known(name, value, names)
      object.__setattr__(self, name, value)
      return
    given = {one: getattr(self, one) for one in names}
    if name == "moe_levels":
      del given["moe_num_experts"]
    checked = MoeHparams(**{**given, name: value})
    for one in names:
      object.__setattr__(self, one, getattr(checked, one))

  def add_hparam(self, name, value):
    """Sets one, as it can be with mesh_tensorflow's."""
    setattr(self, name, value)
