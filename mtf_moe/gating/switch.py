"""The Switch router: each token uses one expert, and no other.

After Fedus et al. 2021, https://arxiv.org/abs/2101.03961, section 2.
"""

import mesh_tensorflow as mtf

from mtf_moe import operations
from mtf_moe.gating import router
from mtf_moe.gating import second_place
from mtf_moe.gating import selection


class SwitchFamily(router.Router):
  """What the routers of the Switch family share: how they explore."""

  def prepare_inputs(self, inputs, settings, train):
    policy = settings.switch_policy(train)
    if train and policy == "input_dropout" and settings.switch_dropout:
      return mtf.dropout(inputs, train, rate=settings.switch_dropout)
    if train and policy == "input_jitter" and settings.switch_jitter:
      return _jittered(inputs, settings.switch_jitter)
    return inputs

  def prepare_logits(self, logits, settings, train):
    if train and settings.use_second_place_expert_prob is not None:
      return second_place.without_best(logits, settings)
    return logits


def _jittered(inputs, epsilon):
  """Multiplies by random numbers between 1 - epsilon and 1 + epsilon.

  As mtf.layers.multiplicative_jitter, but that the factor is a copy: a function
  that is computed again keeps what was drawn, and may not use it in a gradient.
  """
  drawn = mtf.random_uniform(
      inputs.mesh, inputs.shape, minval=1.0 - epsilon, maxval=1.0 + epsilon,
      dtype=inputs.dtype)
  return inputs * operations.stop_gradient(drawn)


def choice(scores: router.Scores) -> tuple[mtf.Tensor, mtf.Tensor]:
  """The one expert of each token, by the policy.

  Args:
    scores: a `Scores`.

  Returns:
    its gate, float32 [..., s], and its number, int32 [..., s].
  """
  if scores.settings.switch_policy(scores.train) != "sample":
    return selection.likeliest(scores.gates, scores.experts_dim)
  expert = mtf.sample_with_temperature(
      scores.logits, scores.experts_dim,
      temperature=scores.settings.switch_temperature)
  return mtf.gather(scores.gates, expert, dim=scores.experts_dim), expert


@router.register("switch")
class Switch(SwitchFamily):
  """The weight of the choice is its gate as it is, so that the router learns.

  Every token of importance above 0 has a choice: at the second level those,
  too, that the first sent here as a second choice.
  """

  def choose(self, scores):
    gate, expert = choice(scores)
    return router.TokenChoice([expert], [gate])
