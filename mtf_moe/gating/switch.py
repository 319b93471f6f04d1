"""The Switch router: each token uses its likeliest expert, and no other.

After Fedus et al. 2021, https://arxiv.org/abs/2101.03961, section 2.
"""

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import routing
from mtf_moe.hparams import MoeHparams


def route(
    inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams, train,
    variable_dtype, importance=None, name="switch_gating",
    num_microbatches=None, token_embeddings=None):
  """Top-1 routing; see `top_2._top_2_gating` for the arguments.

  The weight of the choice is its gate as it is, so that the router learns from
  the result. Every token of importance above 0 has one choice: at the second
  level those, too, that the first sent here as a second choice. The policies
  and the loss of second choices do not apply.

  Returns:
    a `routing.Routing` with one choice
  """
  hparams = MoeHparams.of(hparams)
  group_dim = inputs.shape.dims[-2]
  logits = router.logits(
      inputs, outer_expert_dims, experts_dim, hparams, variable_dtype, name,
      token_embeddings)  # [..., s, x]
  gates = mtf.softmax(logits, experts_dim)

  gate, expert = router.top_1(gates, experts_dim)  # [..., s]
  mask = mtf.one_hot(expert, experts_dim, dtype=gates.dtype)  # [..., s, x]
  wanted = mtf.ones_like(gate)  # [..., s]
  if importance is not None:
    wanted = mtf.to_float(mtf.greater(importance, 0.0))
  balance_loss, z_loss = router.auxiliary_losses(
      losses.balance_loss(
          mask * wanted, gates * wanted, group_dim, experts_dim),
      logits, importance, hparams, train, num_microbatches)
  return routing.Routing(
      choices=routing.fill_buffers(
          [expert], [gate], [wanted], experts_dim, expert_capacity_dim),
      experts_dim=experts_dim,
      capacity_dim=expert_capacity_dim,
      balance_loss=balance_loss,
      gates=gates,
      importance=importance,
      z_loss=z_loss,
      first_choice_above=0.0)
