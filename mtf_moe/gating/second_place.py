"""The second-place option: now and then a token may not use its best expert."""

import mesh_tensorflow as mtf

from mtf_moe.gating import selection
from mtf_moe.hparams import Level

_NEVER = -1e9  # Added to a logit, it makes a gate of 0.


def without_best(logits: mtf.Tensor, settings: Level) -> mtf.Tensor:
  """Lowers the largest logit of some tokens, drawn at random, out of reach.

  Args:
    logits: float32 [..., s, x].
    settings: a `Level`, whose use_second_place_expert_prob is the probability
      with which a token is drawn, and use_second_place_expert_prob_temp the
      temperature at which one of its other experts is drawn; None leaves it to
      the router which one it is.

  Returns:
    float32 [..., s, x]
  """
  experts_dim = logits.shape.dims[-1]
  _, best = selection.top_1(logits, experts_dim)
  best = mtf.one_hot(best, experts_dim)  # [..., s, x]
  drawn = mtf.to_float(mtf.less(
      mtf.random_uniform(logits.mesh, logits.shape.dims[:-1]),
      settings.use_second_place_expert_prob))  # [..., s]
  others = _NEVER * best + logits
  temperature = settings.use_second_place_expert_prob_temp
  if temperature is not None:
    other = mtf.sample_with_temperature(
        others, experts_dim, temperature=temperature)
    others += (1 - mtf.one_hot(other, experts_dim)) * _NEVER
  return drawn * others + (1 - drawn) * logits
