"""The top-2 router: each token may use its two likeliest experts.

After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, with the capacity
and the second-choice policies of Lepikhin et al. 2020,
https://arxiv.org/abs/2006.16668.
"""

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import routing
from mtf_moe.hparams import MoeHparams


def _top_2_gating(
    inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams, train,
    variable_dtype, importance=None, name="top_2_gating",
    num_microbatches=None, token_embeddings=None):
  """Top-2 routing as dense tensors, the interface of mesh_tensorflow.

  Both tensors take part in an einsum: `dispatch` with the inputs gives the
  experts' inputs [..., experts, capacity, input], `combine` with the experts'
  outputs gives the outputs [..., group, output].

  Args:
    inputs: a Tensor [<batch dims>, group, input].
    outer_expert_dims: an optional list of dimensions of `inputs` that have a
      router each: the experts of the level above.
    experts_dim: the Dimension of the experts to choose from.
    expert_capacity_dim: the Dimension of one expert's buffer for one group.
    hparams: a `MoeHparams`, or a mapping or object with `moe_*` names.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.
    importance: an optional Tensor [<batch dims>, group]. A token of importance
      1 uses up to two experts, between 0 and 1 at most one, at 0 none.
    name: a string, the variable scope of the router.
    num_microbatches: an optional integer, into how many parts the training
      step is cut; every part's loss is divided by it.
    token_embeddings: an optional Tensor shaped as `inputs`, the word
      embeddings, needed where hparams.moe_word_embed_mode is set.

  Returns:
    dispatch: a Tensor of zeros and ones with the type of `inputs`,
      [<batch dims>, group, experts, capacity].
    combine: the weights, of the same shape and type.
    loss: a scalar of that type, to be multiplied by hparams.moe_loss_coef.

  Raises:
    ValueError: if a hyperparameter is not allowed.
  """
  routed = route(
      inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams,
      train, variable_dtype, importance=importance, name=name,
      num_microbatches=num_microbatches, token_embeddings=token_embeddings)
  combine = routed.combine_tensor(inputs.dtype)
  loss = routed.balance_loss
  if routed.z_loss is not None:
    loss += routed.z_loss
  return (routing.dispatch_tensor(combine), combine,
          mtf.cast(loss, inputs.dtype))


def route(
    inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams, train,
    variable_dtype, importance=None, name="top_2_gating",
    num_microbatches=None, token_embeddings=None):
  """Top-2 routing; see `_top_2_gating` for the arguments.

  Everything is computed in float32, whatever the type of the inputs.

  Returns:
    a `routing.Routing` with two choices
  """
  hparams = MoeHparams.of(hparams)
  group_dim = inputs.shape.dims[-2]
  logits = router.logits(
      inputs, outer_expert_dims, experts_dim, hparams, variable_dtype, name,
      token_embeddings)  # [..., s, x]
  gates = mtf.softmax(logits, experts_dim)

  gate_1, expert_1 = router.top_1(gates, experts_dim)  # [..., s]
  mask_1 = mtf.one_hot(expert_1, experts_dim, dtype=gates.dtype)  # [..., s, x]
  wanted_1 = wanted_2 = mtf.ones_like(gate_1)  # [..., s]
  first_gates = gates
  if importance is not None:
    # A token that the level above sent here as a second choice has no first
    # choice of its own: its likeliest expert is still there to be its second.
    wanted_1 = mtf.to_float(mtf.equal(importance, 1.0))
    wanted_2 = mtf.to_float(mtf.greater(importance, 0.0))
    mask_1, gate_1, first_gates = (
        mask_1 * wanted_1, gate_1 * wanted_1, gates * wanted_1)

  gates_left = gates * (1.0 - mask_1)  # [..., s, x]
  gate_2, expert_2 = router.top_1(gates_left, experts_dim)

  balance_loss = losses.balance_loss(
      mask_1, first_gates, group_dim, experts_dim)
  if hparams.moe_use_second_place_loss:
    mask_2 = mtf.one_hot(expert_2, experts_dim, dtype=gates.dtype) * wanted_2
    balance_loss += 0.5 * losses.balance_loss(
        mask_2, losses.without_first_choice(gates_left, experts_dim),
        group_dim, experts_dim)
  balance_loss, z_loss = router.auxiliary_losses(
      balance_loss, logits, importance, hparams, train, num_microbatches)

  total = gate_1 + gate_2 + losses.EPSILON
  gate_1, gate_2 = gate_1 / total, gate_2 / total
  policy, threshold = hparams.second_policy(train)
  wanted_2 *= _used_by_policy(gate_2, policy, threshold)
  return routing.Routing(
      choices=routing.fill_buffers(
          [expert_1, expert_2], [gate_1, gate_2], [wanted_1, wanted_2],
          experts_dim, expert_capacity_dim),
      experts_dim=experts_dim,
      capacity_dim=expert_capacity_dim,
      balance_loss=balance_loss,
      gates=gates,
      importance=importance,
      z_loss=z_loss)


def _used_by_policy(gate, policy, threshold):
  """Which second choices the policy uses.

  Args:
    gate: float32 [..., s], the second choice's normalized gate.
    policy: one of hparams.SECOND_POLICIES.
    threshold: a float, the least gate for "threshold", the gate that is always
      used for "random".

  Returns:
    float32 [..., s] of zeros and ones
  """
  if policy == "all":
    return mtf.ones_like(gate)
  if policy == "none":
    return mtf.zeros_like(gate)
  if policy == "threshold":
    return mtf.to_float(mtf.greater(gate, threshold))
  drawn = mtf.random_uniform(gate.mesh, gate.shape)  # [..., s]
  return mtf.to_float(mtf.less(drawn, gate / max(threshold, 1e-9)))
