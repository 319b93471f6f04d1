"""The layer for mesh_tensorflow.transformer, configured by gin."""

import math

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe import experts as experts_lib
from mtf_moe import layer
from mtf_moe import levels
from mtf_moe import recomputation
from mtf_moe.hparams import ChangeableHparams
from mtf_moe.hparams import MoeHparams

# LayerStack.recompute_grads needs it, in any program that builds MoE2D.
recomputation.install()

# In all others a model is used, and the result for one sequence should not
# depend on its neighbours.
_MODES_WITH_CAPACITIES = (
    tf_estimator.ModeKeys.TRAIN, tf_estimator.ModeKeys.EVAL)


@gin.configurable(module="mtf_moe")
class MoE2D(transformer.TransformerLayer):
  """Two-level mixture of experts, in place of DenseReluDense.

  The parameters that mesh_tensorflow's class of this name has keep their names
  and defaults, except `second_policy_eval`: "threshold" evaluates a checkpoint
  to the same number every time, where "random" draws anew. What each one means,
  and what it may be, is said in `MoeHparams`.

  A subclass passes other values on, `super().__init__(**{"group_size": 512,
  **kwargs})`, or sets them afterwards, `self._hparams.moe_group_size = 512`.
  """

  def __init__(self,
               expert_x=8,
               expert_y=8,
               loss_coef=1e-2,
               hidden_size=4096,
               group_size=1024,
               capacity_factor_train=1.25,
               capacity_factor_eval=2.0,
               capacity_factor_second_level=1.0,
               use_second_place_loss=False,
               second_policy_train="random",
               second_policy_eval="threshold",
               second_threshold_train=0.2,
               second_threshold_eval=0.2,
               moe_gating="top_2",
               min_expert_capacity=4,
               z_loss=None,
               word_embed_mode=None,
               activation="relu",
               dropout_rate=0.0,
               dispatch="einsum",
               summaries=True,
               dropless_eval=False,
               dropless_inference=True,
               output_dim=None,
               experts=experts_lib.feed_forward):
    """Checks the parameters.

    Those that are not listed here are explained in `MoeHparams`, under their
    name with the prefix moe_.

    Args:
      expert_x: groups of experts, the first level.
      expert_y: experts in each group, the second level.
      output_dim: the mtf.Dimension of the outputs, or None for the model's.
      experts: the network inside the experts, a callable with the signature of
        `mtf_moe.experts.feed_forward`.

    Raises:
      ValueError: if a value is not allowed.
    """
    self._hparams = ChangeableHparams(
        moe_gating=moe_gating,
        moe_num_experts=(expert_x, expert_y),
        moe_loss_coef=loss_coef,
        moe_hidden_size=hidden_size,
        moe_group_size=group_size,
        moe_min_expert_capacity=min_expert_capacity,
        moe_capacity_factor_train=capacity_factor_train,
        moe_capacity_factor_eval=capacity_factor_eval,
        moe_capacity_factor_second_level=capacity_factor_second_level,
        moe_dropless_eval=dropless_eval,
        moe_dropless_inference=dropless_inference,
        moe_use_second_place_loss=use_second_place_loss,
        moe_second_policy_train=second_policy_train,
        moe_second_policy_eval=second_policy_eval,
        moe_second_threshold_train=second_threshold_train,
        moe_second_threshold_eval=second_threshold_eval,
        moe_z_loss=z_loss,
        moe_word_embed_mode=word_embed_mode,
        moe_activation=activation,
        moe_dropout_rate=dropout_rate,
        moe_dispatch=dispatch,
        moe_summaries=summaries)
    self._output_dim = output_dim
    self._experts = experts

  @property
  def hparams(self) -> MoeHparams:
    """The parameters, under the names that `MoeHparams` gives them."""
    return MoeHparams.of(self._hparams)

  def call(self, context, x, losses=None):
    """Applies the layer and adds its loss to the context's.

    Args:
      context: a transformer.Context.
      x: a Tensor [<batch dims>, model], of any mode: whole sequences, a single
        position, or one position of every beam.
      losses: not used.

    Returns:
      a Tensor [<batch dims>, output]

    Raises:
      NotImplementedError: with an ensemble.
    """
    if context.model.ensemble_dim:
      raise NotImplementedError(
          "MoE2D does not work with ensembles: set Unitransformer.ensemble = "
          "None.")
    batch_dims = x.shape.dims[:-1]
    token_dims = _as_batch_and_length(batch_dims)

    def as_tokens(t):
      """A Tensor that broadcasts to the batch dimensions, reshaped."""
      t = mtf.zeros(x.mesh, batch_dims, x.dtype) + t
      return mtf.reshape(t, token_dims)

    hparams = self.hparams
    if context.mode not in _MODES_WITH_CAPACITIES:
      hparams = hparams.for_inference()
    nonpadding = _nonpadding(context, batch_dims)
    embeddings = None
    if hparams.moe_word_embed_mode is not None:
      embeddings = mtf.reshape(
          context.input_embeddings, token_dims + x.shape.dims[-1:])
    output_dim = self._output_dim or context.model.model_dim
    y, loss = layer.transformer_moe_layer_v2(
        mtf.reshape(x, token_dims + x.shape.dims[-1:]),
        output_dim,
        hparams,
        context.train,
        context.variable_dtype,
        layout=context.model.layout,
        mesh_shape=context.model.mesh_shape,
        nonpadding=None if nonpadding is None else as_tokens(nonpadding),
        num_microbatches=context.num_microbatches,
        token_embeddings=embeddings,
        experts=self._experts)
    y = mtf.reshape(y, batch_dims + [output_dim])
    if context.losses is None:
      return y
    return recomputation.leave(context.losses, loss, y)


def _as_batch_and_length(dims):
  """Merges all but the batch into one length: positions, beams, or neither.

  Args:
    dims: a list of Dimensions, the batch first.

  Returns:
    [outer_batch, batch, length], or [batch, length].
  """
  num_batch_dims = 2 if dims[0].name == levels.OUTER_BATCH else 1
  positions = dims[num_batch_dims:]
  if len(positions) == 1:
    return dims
  length = math.prod(dim.size for dim in positions)
  return dims[:num_batch_dims] + [mtf.Dimension("length", length)]


def _nonpadding(context, batch_dims):
  """Ones at tokens and zeros at padding, as far as the context tells.

  mesh_tensorflow tells its layers in training and evaluation. In scoring, for
  prompts, and for data without segmentation, only the ids do: padding is what
  is 0 behind all others. A single position is a token, unless the context says
  otherwise.

  Args:
    context: a transformer.Context.
    batch_dims: a list of Dimensions, those of the layer's inputs without the
      model's.

  Returns:
    a Tensor with some of these dimensions; None or 1 where nothing is known.
  """
  ids = context.inputs
  if (isinstance(context.sequence_id, mtf.Tensor)
      or context.mode == "incremental"
      or ids is None or not ids.dtype.is_integer
      or not set(ids.shape.dims) <= set(batch_dims)):
    return context.nonpadding
  is_token = mtf.not_equal(ids, 0)
  if context.mode != "first_part" and context.model.autoregressive:
    # A position is fed the token before the one that it predicts, and that one
    # counts. The one that the last position predicts is not known.
    length = context.length_dim
    is_last = mtf.equal(
        mtf.range(ids.mesh, length, tf.int32), length.size - 1)
    if length.size > 1:
      is_last = mtf.logical_and(is_last, is_token)
    up_to_here = mtf.cumsum(mtf.to_float(is_token), length)
    is_token = mtf.logical_or(is_last, mtf.greater(
        mtf.reduce_max(up_to_here, reduced_dim=length), up_to_here))
  return mtf.cast(is_token, context.activation_dtype)
