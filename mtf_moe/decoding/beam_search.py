"""Continues the prompts of a language model by a search with beams.

mesh_tensorflow's own search starts every sequence from nothing, so that only
the decoder of an encoder-decoder can use it.
"""

import dataclasses

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
import tensorflow.compat.v1 as tf

from mtf_moe import knobs

_PAD_ID = 0
_IMPOSSIBLE = -1e9  # As a log-probability; a product with zero stays zero.


@gin.configurable(module="mtf_moe")
@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """Finds the likeliest continuation; for `run.predict_fn`.

  At every position, each beam is extended by every token, and the best of all
  extensions are kept as the new beams. A beam that has come to its end stays as
  it is, and competes with the others. One beam decodes greedily; with as many
  beams as there are continuations, the best of all is found. A continuation
  that is cut off at `max_length` counts as one.

  The score of a continuation is its log-probability given the prompt, over
  ((5 + its length) / 6) ** alpha, where its end counts as a token: Wu et al.
  2016, https://arxiv.org/abs/1609.08144, equation 14, without coverage.

  Attributes:
    beam_size: how many continuations are followed.
    alpha: the bonus of long continuations. 0 compares probabilities, and so
      prefers short ones.
    max_length: the most tokens of a continuation; None is as many as a prompt
      may have.
    eos_id: the id of the end of document.

  Raises:
    ValueError: on a value that is not allowed.
  """

  beam_size: int = 4
  alpha: float = 0.6
  max_length: int | None = None
  eos_id: int = 1

  def __post_init__(self):
    _check_positive_integer("beam_size", self.beam_size, "1 decodes greedily")
    if self.max_length is not None:
      _check_positive_integer(
          "max_length", self.max_length, "None allows as many as a prompt has")
    if not (isinstance(self.alpha, (int, float)) and self.alpha >= 0):
      raise ValueError(
          f"BeamSearch.alpha = {self.alpha!r} must be a number of 0 or more: "
          "0.6 is usual, 0 gives long continuations no bonus.")

  def __call__(self, model, features, variable_dtype):
    """Builds the search.

    Args:
      model: a Unitransformer.
      features: a dict with the Tensor "inputs" [batch, length] of prompts,
        padded with zeros.
      variable_dtype: a mtf.VariableDType.

    Returns:
      an int32 Tensor [batch, max_length], the continuations without the
      prompts, padded with zeros.

    Raises:
      ValueError: if the model is no language model.
    """
    if not (isinstance(model, transformer.Unitransformer)
            and model.fully_autoregressive):
      raise ValueError(
          "run.predict_fn = @mtf_moe.BeamSearch() continues prompts with a "
          'language model, run.model_type = "lm" or "delimited_lm", that reads '
          "them forwards, Unitransformer.input_full_attention = False. An "
          "encoder-decoder searches by itself: set "
          "Bitransformer.decode.beam_size.")
    prompts = features["inputs"]
    batch, length = prompts.shape.dims
    max_length = self.max_length or length.size
    decoder = _Decoder(
        model, prompts, mtf.Dimension("beam", self.beam_size), max_length,
        variable_dtype)
    beams = _Beams.start(decoder, mtf.Dimension(length.name, max_length))

    def is_growing(step, *values):
      ended = _Beams(*values[:_Beams.num_fields]).ended
      return mtf.logical_and(
          mtf.less(step, max_length),
          mtf.logical_not(mtf.reduce_all(mtf.greater(ended, 0.0))))

    def grow(step, *values):
      beams = _Beams(*values[:_Beams.num_fields])
      states = values[_Beams.num_fields:]
      log_probs, states = decoder.step(
          step, beams.last_ids, beams.ended, states)
      parents, beams = self._best(step, beams, log_probs)
      return [step + 1, *beams.as_list(),
              *[_select(state, parents) for state in states]]

    step = mtf.zeros(prompts.mesh, [], tf.int32)
    _, *values = mtf.while_loop(
        is_growing, grow, [step, *beams.as_list(), *decoder.states])
    # The best beam is the first.
    continuations = mtf.slice(
        _Beams(*values[:_Beams.num_fields]).ids, 0, 1, "beam")
    return mtf.reshape(continuations, [batch, continuations.shape.dims[-1]])

  def _best(self, step, beams, log_probs):
    """Extends beams and keeps the best.

    Args:
      step: an int32 scalar, the place of the new token in the continuation.
      beams: a `_Beams`.
      log_probs: a Tensor [batch, beam, vocab], of the next token.

    Returns:
      the beams that the new ones come from, an int32 Tensor [batch, new_beam],
      and the new `_Beams`, best first.
    """
    batch, beam, vocab = log_probs.shape.dims
    going_on = 1.0 - beams.ended
    only_padding = mtf.one_hot(
        mtf.constant(log_probs.mesh, _PAD_ID, dtype=tf.int32), vocab,
        on_value=0.0, off_value=_IMPOSSIBLE, dtype=tf.float32)
    totals = (beams.log_probs + going_on * log_probs
              + beams.ended * only_padding)  # [batch, beam, vocab]
    sizes = beams.sizes + going_on  # [batch, beam]
    bonus = mtf.pow((5.0 + sizes) / 6.0, float(self.alpha))

    extension = mtf.Dimension("beam_and_vocab", beam.size * vocab.size)
    new_beam = mtf.Dimension("new_beam", beam.size)
    scores, chosen = mtf.top_k(
        mtf.reshape(totals / bonus, [batch, extension]), extension, new_beam)
    parents = chosen // vocab.size  # [batch, new_beam]
    last_ids = _as_beams(chosen - parents * vocab.size)  # [batch, beam]
    ended = _select(beams.ended, parents)
    return parents, _Beams(
        last_ids=last_ids,
        ids=_select(beams.ids, parents) + last_ids * mtf.one_hot(
            step, beams.ids.shape.dims[-1], dtype=tf.int32),
        log_probs=_as_beams(scores) * _select(bonus, parents),
        sizes=_select(sizes, parents),
        ended=mtf.maximum(
            ended, mtf.to_float(mtf.equal(last_ids, self.eos_id))))


@dataclasses.dataclass(frozen=True)
class _Beams:
  """Continuations, as the variables of a loop.

  Attributes:
    last_ids: an int32 Tensor [batch, beam], the newest token of each.
    ids: an int32 Tensor [batch, beam, length], all tokens after the prompt.
    log_probs: a float32 Tensor [batch, beam], of all these tokens.
    sizes: a float32 Tensor [batch, beam], how many they are.
    ended: a float32 Tensor [batch, beam], ones where the end is the last.
  """

  last_ids: mtf.Tensor
  ids: mtf.Tensor
  log_probs: mtf.Tensor
  sizes: mtf.Tensor
  ended: mtf.Tensor

  num_fields = 5

  @classmethod
  def start(cls, decoder, length):
    """Empty continuations, the first of which is the only one to be extended.

    All beams are equal at first, so that each would be found many times.
    """
    last_ids = decoder.last_ids_of_prompts
    dims = last_ids.shape.dims
    zeros = mtf.zeros(last_ids.mesh, dims, tf.float32)
    is_first = mtf.one_hot(
        mtf.constant(last_ids.mesh, 0, dtype=tf.int32), dims[-1],
        on_value=0.0, off_value=_IMPOSSIBLE, dtype=tf.float32)
    return cls(last_ids, mtf.zeros(last_ids.mesh, [*dims, length], tf.int32),
               zeros + is_first, zeros, zeros)

  def as_list(self):
    return [self.last_ids, self.ids, self.log_probs, self.sizes, self.ended]


class _Decoder:
  """The model behind the prompts, one position of every beam at a time.

  Each sequence has a position of its own, since prompts have different lengths.
  """

  def __init__(self, model, prompts, beam, max_length, variable_dtype):
    """Builds the model on the prompts.

    Args:
      model: a Unitransformer.
      prompts: an int32 Tensor [batch, length].
      beam: the Dimension of beams.
      max_length: an integer, the most steps.
      variable_dtype: a mtf.VariableDType.
    """
    batch, length = prompts.shape.dims
    # With room for what the layers keep of each position to come.
    prompts = mtf.pad(prompts, [0, max_length], length.name)
    self._length = prompts.shape.dims[-1]
    prompts = mtf.broadcast(prompts, [batch, beam, self._length])
    self._model = model
    self._prompts = prompts
    self._variable_dtype = variable_dtype
    self._positions = mtf.range(prompts.mesh, self._length, tf.int32)
    self._start = mtf.reduce_sum(
        mtf.to_int32(mtf.not_equal(prompts, _PAD_ID)),
        reduced_dim=self._length)  # [batch, beam]
    context = self._context(
        mode="first_part", position=self._positions, position_is_default=True,
        initial_position=self._start, read_priority=self._positions,
        inputs=prompts, constant_states=[])
    self._run(context, transformer.autoregressive_inputs(prompts), reuse=None)
    self._constant_states = context.constant_states
    self.states = context.new_states

  @property
  def last_ids_of_prompts(self):
    """An int32 Tensor [batch, beam]; 0, where mtf starts, without a prompt."""
    return mtf.gather(self._prompts, self._start - 1, self._length)

  def step(self, step, last_ids, ended, states):
    """Predicts the next token.

    Args:
      step: an int32 scalar, how many tokens follow the prompt already.
      last_ids: an int32 Tensor [batch, beam], the last of them.
      ended: a float32 Tensor [batch, beam], ones where nothing follows any
        more, which then is padding.
      states: a list of Tensors, what layers keep of earlier positions.

    Returns:
      log-probabilities [batch, beam, vocab] in float32, and the new states.
    """
    position = self._start + step
    context = self._context(
        mode="incremental", position=position, states=list(states),
        sequence_id=mtf.to_int32(1.0 - ended),
        read_priority=position, inputs=last_ids,
        constant_states=self._constant_states)
    logits = mtf.to_float(self._run(context, last_ids, reuse=True))
    return mtf.log_softmax(logits, logits.shape.dims[-1]), context.new_states

  def _context(self, **kwargs):
    return transformer.Context(
        model=self._model, mesh=self._prompts.mesh,
        batch_dims=self._prompts.shape.dims[:-1], length_dim=self._length,
        variable_dtype=self._variable_dtype, new_states=[],
        write_priority=self._positions, **kwargs)

  def _run(self, context, inputs, reuse):
    with tf.variable_scope(self._model.name, reuse=reuse):
      return self._model._call_internal(context, inputs)


def _select(x, parents):
  """Rows of beams [batch, beam, ...], by their number [batch, new_beam].

  Returns:
    a Tensor [batch, beam, ...]
  """
  new_beam = parents.shape.dims[-1]
  beam = mtf.Dimension("beam", new_beam.size)
  dims = [new_beam if dim == beam else dim for dim in x.shape.dims]
  return _as_beams(mtf.gather(x, parents, beam, output_shape=mtf.Shape(dims)))


def _as_beams(x):
  return mtf.rename_dimension(x, "new_beam", "beam")


def _check_positive_integer(name, value, remedy):
  if not knobs.is_positive_integer(value):
    raise ValueError(
        f"BeamSearch.{name} = {value!r} must be a positive integer; {remedy}.")
