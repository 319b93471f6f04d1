"""Models to run both as a SIMD program and on a placement mesh."""

import functools

import mesh_tensorflow as mtf
from mesh_tensorflow import optimize
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import transformer_layers
import numpy as np
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import harness
from tests.oracle import case as case_lib

OPTIMIZERS = {
    "sgd": lambda: optimize.SgdOptimizer(0.1),
    # Its steps depend on the global step. They are as long for small gradients
    # as for large ones, down to the root of epsilon1: rounding, such as the
    # gradient of a router that is certain, has to stay below.
    "adafactor": lambda: optimize.AdafactorOptimizer(
        min_dim_size_to_factor=4, epsilon1=1e-8),
    "none": None,
}


def case_on(rows, columns, **changed):
  """A case that the mesh divides, with tokens dropped at both levels."""
  return case_lib.Case(**{
      "mesh": (rows, columns), "shape": (rows, 2 * columns, 8),
      "experts": (2 * columns, rows), **changed})


def mesh_shape(case):
  rows, columns = case.mesh
  return f"outer:{rows},batch:{columns}"


def layer_signature(case):
  """The (dtype, shape) of each input of `layer_model`."""
  signature = {"inputs": (case.dtype, _with_depth(case)),
               "direction": (tf.float32, _with_depth(case))}
  if case.importance != "absent":
    signature["nonpadding"] = (case.dtype, mtf.Shape(case.token_dims()))
  return signature


def layer_feeds(case):
  """The value of each input of `layer_model`."""
  feeds = {"inputs": case.inputs(), "direction": harness.output_direction(
      case.seed, _with_depth(case).to_integer_list)}
  importances = case.importances()
  if importances is not None:
    feeds["nonpadding"], _ = importances
  signature = layer_signature(case)
  return {name: np.asarray(array, signature[name][0].as_numpy_dtype)
          for name, array in feeds.items()}


def layer_model(case, optimizer="sgd", input_gradient=True, **hparams):
  """The bare layer, its gradients and an optimizer.

  Args:
    case: a Case.
    optimizer: one of OPTIMIZERS.
    input_gradient: a boolean, whether to differentiate the inputs too.
    **hparams: changed attributes, such as moe_dispatch.

  Returns:
    a model_fn for `simd.build`
  """
  def model(tensors):
    outputs, loss = mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], _with_depth(case).dims[-1], case.hparams(**hparams),
        case.train, harness.variable_dtype(case.dtype), layout=case.layout,
        mesh_shape=mesh_shape(case), nonpadding=tensors.get("nonpadding"),
        token_ids=_made_up_ids(tensors["inputs"])
        if "hash" in hparams.get("moe_gating", ()) else None)
    exported = {"output": outputs, "loss": loss}
    if optimizer == "none":
      return exported, []
    objective = (mtf.to_float(loss) + mtf.reduce_sum(
        mtf.to_float(outputs) * tensors["direction"]))
    variables = outputs.graph.trainable_variables
    wanted = [tensors["inputs"]] if input_gradient else []
    gradients = mtf.gradients(
        [objective], wanted + [v.outputs[0] for v in variables])
    names = ["input_gradient"] * input_gradient + [
        f"gradient of {v.name}" for v in variables]
    exported.update(zip(names, gradients))
    return exported, OPTIMIZERS[optimizer]().apply_grads(
        gradients[len(wanted):], variables)

  return model


def _made_up_ids(inputs):
  """Ids [...] of tokens [..., m], which are multiples of 1/8."""
  return mtf.to_int32(8.0 * mtf.reduce_sum(
      mtf.abs(inputs), reduced_dim=inputs.shape.dims[-1]))


def levels_model(level_list, layout, mesh_shape, dispatch):
  """The layer of some levels, its gradients and an update.

  Args:
    level_list: the experts of each level.
    layout: an input to mtf.convert_to_layout_rules.
    mesh_shape: an input to mtf.convert_to_shape.
    dispatch: the way in which tokens move.

  Returns:
    a model_fn for `simd.build`
  """
  def model(tensors):
    inputs = tensors["inputs"]
    outputs, loss = mtf_moe.transformer_moe_layer(
        inputs, inputs.shape.dims[-1],
        {"moe_hidden_size": 8, "moe_group_size": 8, "moe_dispatch": dispatch,
         "moe_second_policy_train": "threshold", "moe_summaries": False,
         "moe_min_expert_capacity": 1},
        True, harness.variable_dtype(), layout=layout, mesh_shape=mesh_shape,
        levels=level_list)
    variables = outputs.graph.trainable_variables
    input_gradient, *gradients = mtf.gradients(
        [mtf.reduce_sum(mtf.square(outputs)) + loss],
        [inputs, *(v.outputs[0] for v in variables)])
    exported = {"output": outputs, "loss": loss,
                "input_gradient": input_gradient, **{
                    f"gradient of {v.name}": gradient
                    for v, gradient in zip(variables, gradients)}}
    return exported, OPTIMIZERS["sgd"]().apply_grads(gradients, variables)

  return model


def microbatched_model(case, optimizer="sgd", num_microbatches=2, **hparams):
  """The bare layer, trained one part of the batch after the other."""
  _, b1, _ = case.token_dims()

  def loss_of(features):
    inputs = features["inputs"]
    outputs, loss = mtf_moe.transformer_moe_layer_v2(
        inputs, inputs.shape.dims[-1], case.hparams(**hparams), case.train,
        harness.variable_dtype(case.dtype), layout=case.layout,
        mesh_shape=mesh_shape(case), nonpadding=features.get("nonpadding"),
        num_microbatches=num_microbatches)
    return {"loss": mtf.to_float(loss) + mtf.reduce_sum(
        mtf.to_float(outputs) * features["direction"]), "output": outputs}

  def model(tensors):
    graph = tensors["inputs"].graph
    gradients, outputs = mtf.serialize_training_step(
        tensors, loss_of, b1, num_microbatches)
    variables = graph.trainable_variables
    outputs.update({f"gradient of {v.name}": gradient
                    for v, gradient in zip(variables, gradients)})
    return outputs, OPTIMIZERS[optimizer]().apply_grads(gradients, variables)

  return model


def _with_depth(case):
  return mtf.Shape(
      [*case.token_dims(), mtf.Dimension("d_model", case.depth)])


_VOCABULARY = 32


def transformer_inputs(rows, columns, length=8):
  """(dtype, shape) of each input of `transformer_model`, and their values."""
  shape = mtf.convert_to_shape(
      f"outer_batch:{rows},batch:{2 * columns},length:{length}")
  rng = np.random.default_rng(0)
  targets = rng.integers(1, _VOCABULARY, size=shape.to_integer_list)
  targets[:, -1, -3:] = 0  # Padding.
  inputs = np.concatenate(
      [np.zeros_like(targets[..., :1]), targets[..., :-1]], axis=-1)
  return ({name: (tf.int32, shape) for name in ("inputs", "targets")},
          {"inputs": inputs, "targets": targets})


def transformer_model(rows, columns, optimizer="sgd", dtype=tf.float32,
                      train=True, **moe):
  """Two blocks of attention and experts, the loss, and a training step.

  Args:
    rows: an integer, the mesh dimension outer.
    columns: an integer, the mesh dimension batch.
    optimizer: one of OPTIMIZERS.
    dtype: of the activations.
    train: a boolean, whether this is training.
    **moe: parameters of MoE2D.

  Returns:
    a model_fn for `simd.build`
  """
  stack = transformer.make_layer_stack(
      layers=[
          [transformer_layers.SelfAttention,
           {"num_heads": 2, "key_value_size": 4}],
          [mtf_moe.MoE2D, {
              "expert_x": 2 * columns, "expert_y": rows, "hidden_size": 16,
              "group_size": 8, "second_policy_train": "all", **moe}]],
      num_layers=2, layer_stack_cls=functools.partial(
          transformer.LayerStack,
          sublayers_initial=[],
          sublayers_per_layer=[
              transformer.sublayer_rms_norm, transformer.sublayer_call_layer,
              transformer.sublayer_residual],
          sublayers_final=[transformer.sublayer_rms_norm]))

  def model(tensors):
    network = transformer.Unitransformer(
        stack, d_model=16, input_vocab_size=_VOCABULARY,
        output_vocab_size=_VOCABULARY, autoregressive=True, max_length=8,
        vocab_divisor=_VOCABULARY, layout=harness.CANONICAL_LAYOUT,
        mesh_shape=f"outer:{rows},batch:{columns}")
    mode = tf.estimator.ModeKeys
    logits, loss = network.call_simple(
        tensors["inputs"], tensors["targets"], compute_loss=True,
        mode=mode.TRAIN if train else mode.EVAL,
        variable_dtype=harness.variable_dtype(dtype))
    exported = {"output": logits, "loss": loss}
    if optimizer == "none":
      return exported, []
    variables = loss.graph.trainable_variables
    gradients = mtf.gradients([loss], [v.outputs[0] for v in variables])
    exported.update({f"gradient of {v.name}": gradient
                     for v, gradient in zip(variables, gradients)})
    return exported, OPTIMIZERS[optimizer]().apply_grads(gradients, variables)

  return model


def transformer_weights(name, shape):
  """Exact in float32."""
  depth = shape[0] if "kernel" not in name else shape[-2]
  return (harness.random_weights(name, shape) * depth ** -0.5).astype(
      np.float32).astype(np.float64)
