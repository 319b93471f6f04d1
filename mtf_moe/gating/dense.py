"""Routers as dense tensors, the interface of mesh_tensorflow's gatings."""

import mesh_tensorflow as mtf

from mtf_moe.gating import base
from mtf_moe.hparams import MoeHparams


def gating(name: str):
  """A gating with mesh_tensorflow's signature, of the router of a name.

  Both tensors that it returns take part in an einsum: `dispatch` with the
  inputs gives the experts' inputs [..., experts, capacity, input], `combine`
  with the experts' outputs gives the outputs [..., group, output].
  """
  scope = f"{name}_gating"

  def gate(
      inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams,
      train, variable_dtype, importance=None, name=scope, num_microbatches=None,
      token_embeddings=None):
    """Routes as dense tensors.

    Args:
      inputs: a Tensor [<batch dims>, group, input].
      outer_expert_dims: an optional list of dimensions of `inputs` that have a
        router each: the experts of the level above.
      experts_dim: the Dimension of the experts to choose from.
      expert_capacity_dim: the Dimension of one expert's buffer for one group.
      hparams: a `MoeHparams`, or a mapping or object with `moe_*` names.
      train: a boolean.
      variable_dtype: a mtf.VariableDType.
      importance: an optional Tensor [<batch dims>, group]; see
        `gating.Scores`.
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
    settings = MoeHparams.of(hparams).levels[0]
    routed = base.route(
        scope.removesuffix("_gating"), inputs, outer_expert_dims, experts_dim,
        expert_capacity_dim, settings, train, variable_dtype,
        importance=importance, name=name, num_microbatches=num_microbatches,
        token_embeddings=token_embeddings)
    combine = routed.combine_tensor(inputs.dtype)
    loss = routed.balance_loss
    if routed.z_loss is not None:
      loss += routed.z_loss
    return (routed.dispatch_tensor(combine), combine,
            mtf.cast(loss, inputs.dtype))

  gate.__name__ = gate.__qualname__ = f"_{scope}"
  return gate
