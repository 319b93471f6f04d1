"""Scores texts: what mode "score_from_strings" is given, and gives back."""

from collections.abc import Callable
import contextlib
import functools
from typing import Any

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import paths

MODES = ("score_from_strings", "score_from_dataset")
EVALUATION = "score_eval"  # Which scores as well.


def check_strings():
  """Checks the texts that gin has configured, before there is a model.

  Raises:
    ValueError: if there are none, they do not go together, one is longer than
      a sequence, or the scores cannot be written.
  """
  given = gin.get_bindings("score_from_strings")
  for name, example in (("inputs", "to None for targets only"),
                        ("targets", 'to a list such as ["a text"]'),
                        ("score_postprocess_fn", "to @save_scores")):
    if name not in given:
      raise ValueError(
          f"score_from_strings.{name} is not set: set it, {example}.")
  filename = gin.get_bindings("save_scores").get("scores_filename")
  if filename is not None:
    paths.check_new_file(filename, "save_scores.scores_filename")
  targets = _texts("targets", given["targets"])
  inputs = given["inputs"]
  if inputs is not None:
    inputs = _texts("inputs", inputs)
    _check_numbers(len(inputs), len(targets))
  _check_lengths(inputs, targets)


def _texts(name, given):
  """The texts of a list, or of a file with one a line."""
  remedy = ("give a list of strings that is not empty, or the path of a text "
            "file with one a line.")
  texts = given
  if isinstance(given, str):
    if not tf.io.gfile.exists(given) or tf.io.gfile.isdir(given):
      raise ValueError(
          f"score_from_strings.{name} = {given!r} is no file: {remedy}")
    texts = utils.get_inputs_from_file(given)
  if not texts or not isinstance(texts, list | tuple) or not all(
      isinstance(text, str) for text in texts):
    raise ValueError(f"score_from_strings.{name} = {given!r}: {remedy}")
  return list(texts)


def _check_numbers(inputs, targets):
  if targets % inputs and targets != 1:
    raise ValueError(
        f"score_from_strings.inputs has {inputs} texts, and score_from_strings."
        f"targets {targets}: give as many, a multiple of them, or one target.")


def _check_lengths(inputs, targets):
  """mesh_tensorflow would cut a longer text, and score what is left of it."""
  run = gin.get_bindings("utils.run")
  lengths = run.get("sequence_length")
  is_lm = run.get("model_type", "bitransformer") == "lm"
  end = 0 if is_lm else 1  # The end of document.
  # Which encodes the targets as well.
  vocabulary = utils.inputs_vocabulary(run.get("vocabulary"))
  sizes = {name: [len(vocabulary.encode(text.strip())) + end for text in texts]
           for name, texts in (("inputs", inputs or []), ("targets", targets))}
  if is_lm and inputs:  # They stand before the targets.
    number = max(len(inputs), len(targets))
    sizes = {"targets": [
        sizes["inputs"][i * len(inputs) // number]
        + sizes["targets"][i * len(targets) // number] for i in range(number)]}
  for name, of_texts in sizes.items():
    length = lengths[name] if isinstance(lengths, dict) else lengths
    for number, size in enumerate(of_texts, 1):
      if size > length:
        raise ValueError(
            f"score_from_strings.{name}: number {number} has {size} tokens, "
            "inputs before it included in a language model, and "
            f"run.sequence_length is {length}. Shorten the text, or set "
            f"sequence_length to {size} or more.")


@contextlib.contextmanager
def giving_ids():
  """Has models that score give back ids, and not the texts of these.

  mesh_tensorflow decodes them in the graph, and then takes the texts for ids
  where it saves the scores: it decodes them again, and counts them.
  """
  before = {name: getattr(utils, name)
            for name in ("inputs_vocabulary", "targets_vocabulary")}
  try:
    for name, find in before.items():
      setattr(utils, name, _without_decoding(find))
    yield
  finally:
    for name, find in before.items():
      setattr(utils, name, find)


@contextlib.contextmanager
def alone():
  """Has evaluations by scores take scores, whatever comes with them.

  mesh_tensorflow expects two results of what saves scores, which returns three
  where there are inputs, and scores alone where it saves no texts.
  """
  evaluate = utils.eval_model

  def scores(*args, **kwargs):
    found = utils.score_with_estimator(*args, **kwargs)
    return (found[0] if isinstance(found, tuple) else found), None

  utils.eval_model = functools.partial(evaluate, score_with_estimator_fn=scores)
  try:
    yield
  finally:
    utils.eval_model = evaluate


def _without_decoding(
    find: Callable[[Any], Any]) -> Callable[[Any], "_Undecoding"]:
  return lambda vocabulary: _Undecoding(find(vocabulary))


class _Undecoding:
  """A vocabulary that does not decode in a graph."""

  def __init__(self, vocabulary):
    self._vocabulary = vocabulary

  def __getattr__(self, name):
    if name == "decode_tf":
      raise AttributeError(name)
    return getattr(self._vocabulary, name)
