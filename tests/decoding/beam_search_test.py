"""Beam search beside all continuations that there are, and beside mtf's own."""

import dataclasses
import functools
import itertools

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.decoding.beam_search import BeamSearch
from tests import gin_config
from tests import harness

EOS = 1
VOCAB_SIZE = 5
LENGTH = 4  # Of prompts.
# Of every length; an end within one (as a delimited_lm has it) is no end.
PROMPTS = np.array([
    [3, 4, 2, 3], [2, 0, 0, 0], [4, 1, 2, 0], [0, 0, 0, 0],
    [4, 3, 0, 0], [3, 3, 3, 0], [2, 4, 4, 2], [4, 4, 0, 0]])

MODEL = [
    "num_layers = 1", "d_model = 16", "d_kv = 8", "num_heads = 2",
    "MoE2D.expert_x = 2", "MoE2D.expert_y = 2", "MoE2D.hidden_size = 16",
    # Where one table is for both, each token is likely to follow itself.
    "Unitransformer.shared_embedding_and_softmax_weights = False",
    # Slots for every token at every expert: what else is in a group does not
    # matter.
    "MoE2D.capacity_factor_eval = 2.0",
    "MoE2D.capacity_factor_second_level = 2.0"]


def weights(name, shape):
  if name.endswith("scale"):
    return np.ones(shape)
  # Predictions that depend on all tokens before, none of them certain.
  scale = 3.0 if "SelfAttention" in name else 1.5
  return harness.random_weights(f"0{name}", shape) * scale * (
      shape[-2] ** -0.5 if len(shape) > 1 else 1.0)


def run_model(use, ids, mesh=(1, 1)):
  """What `use` (model, an int32 Tensor [batch, length]) makes of ids."""
  gin_config.parse(["models/lm_tiny.gin"], MODEL)
  impl = harness.mesh_impl(*mesh)
  model = utils.build_model(
      "lm", VOCAB_SIZE, VOCAB_SIZE, impl.layout_rules, impl.shape)
  # mesh_tensorflow rounds vocabularies up to a multiple of 128: too many to
  # try. This one is not split.
  model.output_vocab_dim = mtf.Dimension("vocab", VOCAB_SIZE)
  model.input_vocab_dim = mtf.Dimension("vocab", VOCAB_SIZE)
  dims = [mtf.Dimension("batch", ids.shape[0]),
          mtf.Dimension("length", ids.shape[1])]
  return harness.evaluate(
      lambda tensors: use(model, mtf.cast(tensors["ids"], tf.int32)),
      {"ids": (ids, dims)}, weights, impl)


def found(search, mesh=(1, 1), prompts=PROMPTS):
  """The continuations that a BeamSearch finds, [batch, length]."""
  return run_model(
      lambda model, ids: search(
          model, {"inputs": ids}, harness.variable_dtype()),
      prompts, mesh).astype(int)


def greedy(max_length):
  """What mesh_tensorflow makes of the prompts without beams."""
  def decode(model, ids):
    return model.sample_autoregressive(
        mtf.pad(ids, [0, max_length], "length"), max_steps=max_length,
        variable_dtype=harness.variable_dtype(), remove_partial_sequences=True)

  return up_to_the_end(
      run_model(decode, PROMPTS).astype(int)[:, :max_length])


def up_to_the_end(ids):
  """Rows with zeros behind the first end of document."""
  ended = np.cumsum(ids == EOS, axis=-1) - (ids == EOS)
  return np.where(ended > 0, 0, ids)


@functools.cache
def log_probs_of_all(max_length):
  """Every continuation of up to `max_length` tokens, with its probability.

  Args:
    max_length: an integer.

  Returns:
    for every prompt, a list of pairs of a tuple of ids, that ends in EOS or has
    all the tokens, and its log-probability, by one pass over whole sequences
  """
  others = [i for i in range(VOCAB_SIZE) if i != EOS]
  all_ids = [
      (*begin, EOS) for size in range(max_length)
      for begin in itertools.product(others, repeat=size)]
  all_ids += list(itertools.product(others, repeat=max_length))

  def logits(model, ids_and_one):
    # Token 0 is a token like the others, where the sequence has not ended.
    ids = mtf.maximum(ids_and_one - 1, 0)
    return model.call_simple(
        inputs=transformer.autoregressive_inputs(ids), targets=ids,
        compute_loss=False, mode="eval",
        variable_dtype=harness.variable_dtype(),
        sequence_id=mtf.minimum(ids_and_one, 1))[0]

  pairs = list(itertools.product(PROMPTS, all_ids))
  sequences = np.zeros([len(pairs), LENGTH + max_length], int)
  for row, (prompt, ids) in zip(sequences, pairs):
    size = np.count_nonzero(prompt)
    row[:size + len(ids)] = np.array([*prompt[:size], *ids]) + 1
  values = run_model(logits, sequences).astype(np.float64)
  values -= np.log(np.sum(np.exp(values), axis=-1, keepdims=True))
  totals = [
      (ids, sum(row[np.count_nonzero(prompt) + i, token]
                for i, token in enumerate(ids)))
      for (prompt, ids), row in zip(pairs, values)]
  return [totals[i:i + len(all_ids)]
          for i in range(0, len(totals), len(all_ids))]


def best_of_all(max_length, alpha):
  """The continuation with the best score for every prompt, [batch, length]."""
  best = np.zeros([len(PROMPTS), max_length], int)
  for row, candidates in zip(best, log_probs_of_all(max_length)):
    ids, _ = max(candidates, key=lambda candidate: (
        candidate[1] / ((5 + len(candidate[0])) / 6) ** alpha))
    row[:len(ids)] = ids
  return best


@pytest.mark.parametrize("max_length", [1, 6])
def test_one_beam_is_greedy(max_length):
  expected = greedy(max_length)
  np.testing.assert_array_equal(
      found(BeamSearch(beam_size=1, max_length=max_length)), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_enough_beams_find_the_best_of_all_continuations(alpha):
  search = BeamSearch(
      beam_size=VOCAB_SIZE ** 2, max_length=3, alpha=alpha)
  expected = best_of_all(3, alpha)
  np.testing.assert_array_equal(found(search), expected)


def test_the_cases_are_telling():
  """Greed misses the best; the bonus changes it; ends come early or never."""
  best = best_of_all(3, 0.6)
  assert (greedy(3) != best).any(axis=-1).sum() >= 3
  assert (best_of_all(3, 0.0) != best).any()
  assert (best_of_all(3, 3.0) != best).any()
  ends = [list(row).index(EOS) if EOS in row else None for row in best]
  assert {0, 1, None} <= set(ends)


def test_a_few_beams_are_better_than_one():
  """Never worse than greedy here, and without all continuations."""
  log_probs = [dict(candidates) for candidates in log_probs_of_all(3)]

  def totals(rows):
    # Token 0 is both a token and padding: the shortest reading is meant.
    result = []
    for row, known in zip(rows, log_probs):
      ids = tuple(int(i) for i in row)
      if EOS in ids:
        ids = ids[:ids.index(EOS) + 1]
      result.append(known[ids])
    return np.array(result)

  few = totals(found(BeamSearch(beam_size=2, max_length=3, alpha=0.0)))
  one = totals(greedy(3))
  assert (few >= one - 1e-6).all() and (few > one + 1e-3).any()


@pytest.mark.parametrize("mesh", [(1, 2), (2, 2)], ids=str)
def test_the_same_on_every_mesh(mesh):
  search = BeamSearch(beam_size=3, max_length=6)
  np.testing.assert_array_equal(found(search, mesh), found(search))


def test_as_long_as_the_prompts_by_default():
  assert found(BeamSearch(beam_size=2)).shape == PROMPTS.shape


@pytest.mark.parametrize("values, said", [
    (dict(beam_size=0), "BeamSearch.beam_size = 0 must be a positive integer"),
    (dict(beam_size=2.0), "BeamSearch.beam_size = 2.0"),
    (dict(max_length=True), "BeamSearch.max_length = True.*None allows"),
    (dict(alpha=-1), "BeamSearch.alpha = -1 .*0.6 is usual"),
    (dict(alpha="much"), "BeamSearch.alpha = 'much'"),
])
def test_mistakes(values, said):
  with pytest.raises(ValueError, match=said):
    BeamSearch(**values)


def test_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    BeamSearch().alpha = 1.0


def test_an_encoder_decoder_is_refused():
  gin_config.parse(["models/bitransformer_small.gin"])
  model = utils.build_model("bitransformer", VOCAB_SIZE, VOCAB_SIZE, "", "")
  with pytest.raises(ValueError, match=r"Bitransformer\.decode\.beam_size"):
    BeamSearch()(model, {}, harness.variable_dtype())
