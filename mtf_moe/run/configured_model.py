"""The model and the training step that gin has configured for mtf's `run`.

Built as mtf graphs, which need no session and no TensorFlow: for checks before
a run, and for counting what one would cost.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe import layer_records
from mtf_moe import mesh_split
from mtf_moe.run import gin_bindings
from mtf_moe.run import layouts
from mtf_moe.run import optimization

_ONE_STACK = ("lm", "delimited_lm")  # Models that have targets only.


@dataclasses.dataclass(frozen=True)
class ConfiguredModel:
  """What the parameters of mesh_tensorflow's `run` state.

  Attributes:
    run: the gin bindings of `run`.
    lengths: the length of sequences, by feature.
    mesh_shape: a mtf.Shape.
    layout: a mtf.LayoutRules.
    batch_dims: [batch] or [outer_batch, batch], as the model sees them.
    num_microbatches: into how many parts a training step cuts `batch`.
    data_features: the names of what the data has; None where it is not at hand.
  """

  run: dict
  lengths: dict[str, int]
  mesh_shape: mtf.Shape
  layout: mtf.LayoutRules
  batch_dims: Sequence[mtf.Dimension]
  num_microbatches: int
  data_features: Sequence[str] | None = None

  @classmethod
  def from_gin(
      cls, mesh_shape=None, layout_rules=None, outer_batch_size=None,
      default_length=None):
    """Reads and checks the bindings.

    Args:
      mesh_shape: an input to mtf.convert_to_shape, in place of that of gin.
      layout_rules: an input to mtf.convert_to_layout_rules, likewise.
      outer_batch_size: an integer, likewise.
      default_length: an integer, the length of sequences where that depends on
        the data.

    Returns:
      a ConfiguredModel; None where the lengths of sequences, and with them the
      model, depend on the data of an evaluation, without a `default_length`.

    Raises:
      ValueError: if the mesh or the layout cannot be read, or the batch does
        not fit the mesh.
    """
    if mesh_shape is None:
      layouts.check_is_set()
    run = gin.get_bindings("utils.run")
    check_vocabulary(run.get("vocabulary"))
    if outer_batch_size is None:
      outer_batch_size = gin.get_bindings("tpu_estimator_model_fn").get(
          "outer_batch_size", 1)
    lengths = run.get("sequence_length") or default_length
    if lengths is None:
      return None
    lengths = _by_feature(lengths)
    mesh_shape = layouts.mesh_shape(mesh_shape or run.get("mesh_shape"))
    layout = layouts.layout_rules(
        run.get("layout_rules") if layout_rules is None else layout_rules,
        mesh_shape)
    devices = run.get("mesh_devices")
    if devices is not None and len(devices) != mesh_shape.size:
      raise ValueError(
          f"run.mesh_devices = {devices!r} names {len(devices)} devices, and "
          f"run.mesh_shape has {mesh_shape.size} slices: name one for each.")
    batch_dims = _batch_dims(
        run, lengths, mesh_shape, layout, outer_batch_size)
    return cls(
        run, lengths, mesh_shape, layout, batch_dims,
        utils.serialize_num_microbatches(
            batch_dims[-1], lengths, mesh_shape, layout))

  @property
  def rules(self) -> dict[str, str]:
    """The layout as the mesh dimension of each dimension that it splits."""
    return dict(sorted(self.layout._pairs))  # mtf only answers one by one.

  @property
  def mode(self) -> str:
    """"train" or "eval"; all other modes have the variables of the latter."""
    return "train" if self.run.get("mode", "train") == "train" else "eval"

  @property
  def num_sequences(self) -> int:
    """In a batch, of all its parts."""
    return math.prod(dim.size for dim in self.batch_dims)

  @property
  def train_steps(self) -> int:
    """The step at which training ends."""
    steps = self.run.get("train_steps", utils.auto_train_steps)
    return steps(self.num_sequences, self.lengths) if callable(steps) else steps

  @property
  def total_steps(self) -> int:
    """The steps that schedules are made for."""
    total = self.run.get("total_run_steps")
    return self.train_steps if total is None else total

  @property
  def microbatch_dims(self):
    """`batch_dims` of one part of a step."""
    *outer, batch = self.batch_dims
    return [*outer, mtf.Dimension(
        batch.name, batch.size // self.num_microbatches)]

  def loss(self, mesh, mode) -> mtf.Tensor:
    """Builds the model on one microbatch of zeros; see `loss_of`."""
    return self.loss_of({
        feature: mtf.zeros(mesh, self.microbatch_dims + [dim], tf.int32)
        for feature, dim in self.data_dims.items()}, mode)

  @property
  def data_dims(self) -> dict[str, mtf.Dimension]:
    """The length of each feature of the data that a step is given.

    Where it is not known what the data has: what the model cannot do without,
    and where its sequences are. Text and packed data have those, and layers of
    mesh_tensorflow do not train without them.
    """
    names = self.data_features
    if names is None:
      names = [f"{feature}{kind}" for feature in self.feature_dims
               for kind in ("", "_segmentation")]
    return {feature: self.length_dim(feature) for feature in names}

  @property
  def feature_dims(self) -> dict[str, mtf.Dimension]:
    """The length of each feature that the model cannot do without."""
    wanted = ["targets"] if self._has_one_stack else ["inputs", "targets"]
    return {feature: self.length_dim(feature) for feature in wanted}

  def length_dim(self, feature: str) -> mtf.Dimension:
    """The last dimension of a feature, such as "targets_segmentation"."""
    return mtf.Dimension("length", self.lengths[feature.partition("_")[0]])

  @property
  def _has_one_stack(self):
    return self.run.get("model_type", "bitransformer") in _ONE_STACK

  def loss_of(self, features: dict[str, mtf.Tensor], mode) -> mtf.Tensor:
    """Builds the model on a microbatch.

    Args:
      features: int32 [<microbatch dims>, length], ids, for each of
        `feature_dims`; and what data has beside them, as `data_dims`, under the
        names that mesh_tensorflow knows.
      mode: "train" or "eval".

    Returns:
      a scalar

    Raises:
      ValueError: if a layer refuses its parameters, the mesh cannot hold a
        tensor, or a table of positions is too short.
    """
    vocabulary = self.run.get("vocabulary")
    model_type = self.run.get("model_type", "bitransformer")
    if model_type == "bi_student_teacher":
      raise ValueError(
          "run.model_type = 'bi_student_teacher' is not supported, since a run "
          "is checked on one model, and that has two: use another, such as "
          "'bitransformer'.")
    model = utils.build_model(
        model_type=model_type,
        input_vocab_size=utils.inputs_vocabulary(vocabulary).vocab_size,
        output_vocab_size=utils.targets_vocabulary(vocabulary).vocab_size,
        mesh_shape=self.mesh_shape, layout_rules=self.layout)
    self._check_positions(model)

    if model_type == "delimited_lm" and "inputs" in features:
      features = utils._dynamic_text2self(features)
    targets = features["targets"]
    inputs = (transformer.autoregressive_inputs(
        targets, features.get("targets_segmentation"))
              if self._has_one_stack else features["inputs"])
    try:
      _, loss = model.call_simple(
          inputs=inputs, targets=targets, compute_loss=True, mode=mode,
          variable_dtype=utils.get_variable_dtype(),
          num_microbatches=self.num_microbatches,
          **_places(model, features))
    except ValueError:
      self._check_tensors(targets.graph)  # It may be why, and says it better.
      raise
    self._check_tensors(targets.graph)
    return loss

  def _check_tensors(self, graph):
    layouts.check_tensors(
        (t for op in graph.operations for t in op.outputs),
        mesh_split.MeshSplit(self.layout, self.mesh_shape))

  def _check_positions(self, model):
    """Sees that tables of positions are long enough for the mode."""
    needed, what = max(self.lengths.values()), "a sequence"
    if self.run.get("mode") in ("infer", "export_infer", "export"):
      if isinstance(model, transformer.Unitransformer):
        # Of BeamSearch, which else continues by as many as a prompt has.
        continuation = self.lengths["targets"]
        if (predict_fn := self.run.get("predict_fn")) is not None:
          continuation = (getattr(predict_fn, "max_length", None)
                          or self.lengths["inputs"])
        needed = self.lengths["inputs"] + continuation
        what = "a prompt with its continuation"
      else:
        limit = gin.get_bindings("Bitransformer.decode").get(
            "max_decode_length")
        needed = max(self.lengths["inputs"], limit or 0)
    stacks = [getattr(model, name) for name in ("encoder", "decoder")
              if hasattr(model, name)] or [model]
    for stack in stacks:
      table = getattr(stack, "max_length_dim", None)
      if table is not None and table.size < needed:
        raise ValueError(
            f"Unitransformer.max_length = {table.size} is the length of the "
            f"table of positions, and {what} may have {needed} tokens "
            "(run.sequence_length): set it to so many, which makes another "
            "model, or lower run.sequence_length.")

  @property
  def variables(self) -> dict[str, list[int]]:
    """The shapes of all variables of the model, by name."""
    return {name: shape for name, (shape, _) in self._built[0].items()}

  @property
  def dtypes(self) -> dict[str, tf.DType]:
    """The types in which checkpoints have the variables of the model."""
    return {name: dtype for name, (_, dtype) in self._built[0].items()}

  @property
  def parameters(self) -> dict[str, dict]:
    """What gin gave to all parts of the model (`gin_bindings.recorded`)."""
    return self._built[1]

  @functools.cached_property
  def _built(self):
    """Shapes and types of the model's variables; and its parameters."""
    with tf.Graph().as_default(), gin_bindings.recorded() as parameters:
      graph = mtf.Graph()
      self.loss(mtf.Mesh(graph, "variables"), self.mode)
    variables = {v.name: (v.shape.to_integer_list, v.master_dtype)
                 for v in graph.all_variables}
    return variables, parameters

  @property
  def training_graph(self) -> tf.Graph:
    """A graph with all variables of training, and nothing to run.

    Those of the model and of the optimizer, and the step.

    Raises:
      ValueError: if no optimizer is configured, or it cannot train the model,
        or there is no learning rate.
    """
    return self._training[0]

  @property
  def layers(self) -> list[layer_records.LayerRecord]:
    """The mixtures in training; errors as of `training_graph`."""
    return self._training[1]

  @functools.cached_property
  def _training(self):
    with tf.Graph().as_default() as tf_graph:
      rate = optimization.learning_rate(
          self.run.get("learning_rate_schedule"), self.total_steps,
          tf.train.get_or_create_global_step())
      graph = mtf.Graph()
      loss = self.loss(mtf.Mesh(graph, "variables"), "train")
      trained = graph.trainable_variables
      gradients = mtf.gradients([loss], [v.outputs[0] for v in trained])
      optimization.update(self.run, rate, gradients, trained)
    return tf_graph, layer_records.of(graph)


def _places(model, features):
  """Where tokens are in their sequences, as arguments of the model."""
  names = {"sequence_id": "targets_segmentation",
           "position": "targets_position"}
  if not isinstance(model, transformer.Unitransformer):
    names = {"encoder_sequence_id": "inputs_segmentation",
             "decoder_sequence_id": "targets_segmentation",
             "decoder_subsequence_id": "targets_subsegmentation",
             "encoder_position": "inputs_position",
             "decoder_position": "targets_position"}
  return {name: features.get(feature) for name, feature in names.items()}


def check_vocabulary(vocabulary):
  """Raises ValueError if a model cannot be made for what run.vocabulary is."""
  for one in vocabulary if isinstance(vocabulary, tuple) else [vocabulary]:
    if not hasattr(one, "vocab_size"):
      raise ValueError(
          f"run.vocabulary = {vocabulary!r} is no vocabulary: add a file such "
          "as --gin_file=data/bytes.gin, or set it to "
          "@mtf_moe.ByteVocabulary() or @mtf_moe.SentencePieceVocabulary().")


def batch_size() -> int:
  """The sequences of a batch, of the configuration.

  Raises:
    ValueError: as `sequences_per_batch`, or if there is no mesh.
  """
  layouts.check_is_set()
  run = functools.partial(gin_bindings.bound, "utils.run")
  shape = layouts.mesh_shape(run("mesh_shape"))
  given = run("batch_size")
  return sequences_per_batch(
      {} if given is None else {"batch_size": given},
      _by_feature(run("sequence_length")), shape,
      layouts.layout_rules(run("layout_rules"), shape))


def _by_feature(lengths):
  if isinstance(lengths, int):
    return {"inputs": lengths, "targets": lengths}
  return lengths


def sequences_per_batch(run, lengths, mesh_shape, layout) -> int:
  """The sequences of a batch, in whichever way run.batch_size says it.

  Args:
    run: the gin bindings of `run`.
    lengths: the length of sequences, by feature.
    mesh_shape: a mtf.Shape.
    layout: a mtf.LayoutRules.

  Raises:
    ValueError: if that is no positive number.
  """
  batch_size = given = run.get("batch_size", ("tokens_per_replica", 2048))
  if not isinstance(given, int):
    try:
      batch_size = utils.compute_batch_size(lengths, mesh_shape, layout, given)
    except ValueError as error:  # Of numbers without a name.
      raise ValueError(
          f"run.batch_size = {given!r} makes no whole number of sequences of "
          f"{max(lengths.values())} tokens ({error}): give a multiple of "
          "run.sequence_length.") from error
  if batch_size <= 0:
    raise ValueError(
        f"run.batch_size = {given!r} makes a batch of {batch_size} sequences: "
        "set it to a positive number.")
  return batch_size


def _batch_dims(run, lengths, mesh_shape, layout, outer):
  """The batch Dimensions that the model will see."""
  batch_size = sequences_per_batch(run, lengths, mesh_shape, layout)
  split = mesh_split.MeshSplit(layout, mesh_shape)
  has_outer_batch = run.get("mode", "train") in ("train", "perplexity_eval")
  if not (has_outer_batch and outer):
    dims = [mtf.Dimension("batch", batch_size)]
  else:
    if batch_size % outer:
      raise ValueError(
          f"run.batch_size = {batch_size} sequences cannot be cut into "
          f"tpu_estimator_model_fn.outer_batch_size = {outer} parts: make the "
          f"batch a multiple of {outer}, or change outer_batch_size.")
    dims = [mtf.Dimension(mesh_split.OUTER_BATCH, outer),
            mtf.Dimension("batch", batch_size // outer)]
    split.check_divides(dims[0], "tpu_estimator_model_fn.outer_batch_size")
  split.check_divides(
      dims[-1],
      "run.batch_size (over tpu_estimator_model_fn.outer_batch_size)")
  return dims
