"""Which of the choices behind the first are used."""

import mesh_tensorflow as mtf

from mtf_moe.hparams import Level


def used(gate: mtf.Tensor, settings: Level, train: bool) -> mtf.Tensor:
  """Which choices the policy of a level uses.

  Args:
    gate: float32 [..., s], the choice's normalized gate.
    settings: a `Level`.
    train: a boolean.

  Returns:
    float32 [..., s] of zeros and ones
  """
  policy, threshold = settings.second_policy(train)
  if policy == "all":
    return mtf.ones_like(gate)
  if policy == "none":
    return mtf.zeros_like(gate)
  if policy == "threshold":
    return mtf.to_float(mtf.greater(gate, threshold))
  drawn = mtf.random_uniform(gate.mesh, gate.shape)  # [..., s]
  return mtf.to_float(mtf.less(drawn, gate / max(threshold, 1e-9)))
