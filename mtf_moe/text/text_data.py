"""Local text as a data set for mesh_tensorflow.transformer.utils.run.

The documents of a part are encoded, each followed by the end-of-document id,
concatenated, and cut into windows of equal length; a window is one example.

A configuration binds the files once, on `TextFiles`:

  TextFiles.glob = "text/*.txt"
  run.train_dataset_fn = @mtf_moe.text_dataset
  run.vocabulary = @mtf_moe.ByteVocabulary()
"""

import contextlib
import dataclasses
import functools
import math

import gin
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import configured_model
from mtf_moe.run import gin_bindings
from mtf_moe.text import encoding
from mtf_moe.text import text_files
from mtf_moe.text import vocabulary as vocabulary_lib

# The names of the two parts, as values of run.dataset_split.
TRAIN = "train"
HELD_OUT = "validation"

# Looking windows up one by one would cost more than reading them, most of all
# when a run that continues skips the examples of all earlier steps.
_WINDOWS_PER_LOOK_UP = 256


@gin.configurable(module="mtf_moe")
def text_dataset(sequence_length, vocabulary, dataset_split, files=None,
                 shuffle_seed=0):
  """Makes a data set of text; bind it to `run.train_dataset_fn`.

  The training part comes in an order that is shuffled anew in each pass over it
  (`.repeat()` starts a pass), and is the same in every run: a run that stops
  and continues with run.skip_seen_data = True sees the batches that a run in
  one piece sees. The held-out part comes in the order of the text, once.

  Args:
    sequence_length: an integer, or a dict with the key "targets": the length of
      a window in tokens.
    vocabulary: a Vocabulary of mesh_tensorflow.transformer, or a tuple of which
      the second encodes targets.
    dataset_split: "train" or "validation" (the held-out part).
    files: a TextFiles; None builds one from its gin bindings.
    shuffle_seed: an integer, which alone decides the order, whatever
      train_model.seed is; None leaves the training part in the order of the
      text.

  Returns:
    A finite tf.data.Dataset of {"targets": int32 [sequence_length],
      "targets_segmentation": int32 [sequence_length]}. The last window is
      padded with zeros. The segmentation is 1 on tokens and 0 on padding: it is
      how a layer of mesh_tensorflow learns which positions are padding, which
      should take no expert's capacity (and without it, mesh_tensorflow's own
      mixture-of-experts layers with top-2 gating do not train).

  Raises:
    ValueError: an argument is not allowed; a part, or a file, is shorter than
      one window (see TextFiles.allow_short_files); and as `TextFiles.read`.
  """
  if dataset_split not in (TRAIN, HELD_OUT):
    raise ValueError(
        f"run.dataset_split={dataset_split!r} is not a part of text_dataset. "
        f"Use {TRAIN!r}, or {HELD_OUT!r} for the held-out part.")
  length = _window_length(sequence_length)
  parts = _encode_parts(_or_from_gin(files), _targets_vocabulary(vocabulary),
                        length)
  windows = _cut_into_windows(parts[dataset_split].tokens.ids, length)
  indices = tf.data.Dataset.range(len(windows))
  if dataset_split == TRAIN and shuffle_seed is not None:
    with _no_other_seed():
      indices = indices.shuffle(
          len(windows), seed=shuffle_seed, reshuffle_each_iteration=True)
  return _look_up(windows, indices)


@contextlib.contextmanager
def _no_other_seed():
  """Makes operations whose own seed is all that counts.

  TensorFlow mixes it with that of the graph, which a run has for the sake of
  initial values.
  """
  graph = tf.get_default_graph()
  before, graph.seed = graph.seed, 0
  try:
    yield
  finally:
    graph.seed = before


@dataclasses.dataclass(frozen=True)
class TextSize:
  """How much text a part has.

  Attributes:
    num_documents: files, or pieces of files where a part begins within one.
    num_bytes: bytes of UTF-8, without the ends of documents.
    num_tokens: tokens, one for the end of each document included. The metric
      num_eval_tokens of a perplexity evaluation of all windows is this number.
    num_windows: examples of one sequence length, the last of them padded.
  """
  num_documents: int
  num_bytes: int
  num_tokens: int
  num_windows: int

  def bits_per_byte(self, neg_log_perplexity):
    """Converts the metric of mesh_tensorflow's perplexity evaluation.

    Bits per byte compare models with different vocabularies, and with other
    compressors of the same text. The ends of documents are paid for, but are
    not counted as bytes.

    Args:
      neg_log_perplexity: a number, the mean log-likelihood per token in nats
        (not positive) over all tokens of the part.

    Returns:
      A float, bits per byte.
    """
    total_nats = -neg_log_perplexity * self.num_tokens
    return total_nats / math.log(2) / self.num_bytes


@gin.configurable(module="mtf_moe")
def held_out_size(vocabulary, sequence_length, files=None):
  """Measures the held-out part, and checks that its bits per byte are honest.

  They are only if the tokens hold the whole text: a vocabulary that drops or
  rewrites characters has less to predict.

  Args:
    vocabulary: as for `text_dataset`.
    sequence_length: as for `text_dataset`.
    files: a TextFiles; None builds one from its gin bindings.

  Returns:
    A TextSize.

  Raises:
    ValueError: decoding the tokens of a document does not give back its text;
      and as `text_dataset`.
  """
  vocabulary = _targets_vocabulary(vocabulary)
  length = _window_length(sequence_length)
  part = _encode_parts(_or_from_gin(files), vocabulary, length)[HELD_OUT]
  for document, ids in zip(part.documents, part.tokens.of_each_document(),
                           strict=True):
    if vocabulary.decode(ids[:-1].tolist()) != document.text:
      raise ValueError(
          f"run.vocabulary, a {type(vocabulary).__name__}, does not give back "
          f"the text of {document.path}, so bits per byte would come out too "
          "low. Use @mtf_moe.ByteVocabulary(), or a SentencePiece model that "
          "`python -m mtf_moe.text.vocabulary` trained.")
  return TextSize(
      num_documents=len(part.documents),
      num_bytes=sum(document.num_bytes for document in part.documents),
      num_tokens=len(part.tokens.ids),
      num_windows=len(_cut_into_windows(part.tokens.ids, length)))


@gin.configurable(module="mtf_moe")
def held_out_steps(batch_size=None, vocabulary=None, sequence_length=None,
                   files=None):
  """Counts the steps that evaluate every held-out window once.

  For `run.perplexity_eval_steps = @mtf_moe.held_out_steps()`. The evaluation
  fills the last batch with empty examples.

  Args:
    batch_size: an integer, windows in a batch; None takes that of `run`, in
      whichever way it is set.
    vocabulary: as for `text_dataset`; None takes that of `run`.
    sequence_length: as for `text_dataset`; None takes that of `run`.
    files: a TextFiles; None builds one from its gin bindings.

  Returns:
    A positive integer.

  Raises:
    ValueError: batch_size is not a positive integer; and as `text_dataset`.
  """
  run = functools.partial(gin_bindings.bound, "utils.run")
  if sequence_length is None:
    sequence_length = run("sequence_length")
  if sequence_length is None and run("mode") in ("eval", "score_eval"):
    return 1  # Data decides the length, and nobody uses this.
  if batch_size is None:
    batch_size = configured_model.batch_size()
  if vocabulary is None:
    vocabulary = run("vocabulary")
  if not _is_positive_integer(batch_size):
    raise ValueError(
        f"held_out_steps.batch_size={batch_size!r} is not allowed: give a "
        "positive integer, the same as run.batch_size.")
  length = _window_length(sequence_length)
  parts = _encode_parts(_or_from_gin(files), _targets_vocabulary(vocabulary),
                        length)
  num_windows = len(_cut_into_windows(parts[HELD_OUT].tokens.ids, length))
  return math.ceil(num_windows / batch_size)


@dataclasses.dataclass(frozen=True)
class _EncodedPart:
  """Documents and their Tokens."""
  documents: list
  tokens: encoding.Tokens


# A run asks several times: for its checks, its number of steps, its data.
@functools.lru_cache(maxsize=2)
def _encode_parts(files, vocabulary, length):
  """Reads, encodes and checks both parts, whichever of them is wanted.

  That way a run finds a mistake in either when it starts training.

  Args:
    files: a TextFiles.
    vocabulary: a Vocabulary.
    length: an integer, tokens in a window.

  Returns:
    A dict from the name of the part to an _EncodedPart.
  """
  parts = {
      name: _EncodedPart(documents, encoding.encode(
          documents, vocabulary, vocabulary_lib.EOS_ID))
      for name, documents in zip((TRAIN, HELD_OUT), files.read(), strict=True)}
  if not files.allow_short_files:
    _check_each_file_fills_a_window(parts.values(), length)
  for name, part in parts.items():
    if len(part.tokens.ids) < length:
      raise ValueError(
          f"The {name} part of TextFiles.glob={files.glob!r} has "
          f"{len(part.tokens.ids)} tokens, fewer than one sequence of "
          f"run.sequence_length={length}. Give more text, divide it otherwise "
          f"(TextFiles.held_out={files.held_out!r}), or lower "
          "run.sequence_length.")
  return parts


def _check_each_file_fills_a_window(parts, length):
  """Raises a ValueError that names the first file that is too short."""
  num_tokens = {}  # By path: a file may have a piece in either part.
  for part in parts:
    for document, n in zip(part.documents, part.tokens.lengths, strict=True):
      num_tokens[document.path] = num_tokens.get(document.path, 0) + n
  short = {path: n for path, n in num_tokens.items() if n < length}
  if short:
    path, n = min(short.items())
    raise ValueError(
        f"{len(short)} of the {len(num_tokens)} files of TextFiles.glob "
        f"are shorter than one sequence: {path} has {n} tokens, "
        f"run.sequence_length={length}. Lower run.sequence_length, join short "
        "files into longer ones, or set TextFiles.allow_short_files=True, "
        "which lets a sequence run on into the next file.")


def _cut_into_windows(tokens, length):
  """Cuts an array [num_tokens] into [num_windows, length], padded with 0."""
  num_windows = math.ceil(len(tokens) / length)
  padding = num_windows * length - len(tokens)
  padded = np.pad(tokens, (0, padding), constant_values=vocabulary_lib.PAD_ID)
  return padded.reshape([num_windows, length])


def _look_up(windows, indices):
  """Maps a data set of window numbers to examples, in the same order.

  The windows stay outside of the graph, whose size is limited and which every
  training run writes to its model directory.

  Args:
    windows: an array [num_windows, length].
    indices: a Dataset of int64 scalars.

  Returns:
    A Dataset as described in `text_dataset`.
  """
  def get_windows(numbers):
    return windows[numbers].astype(np.int32)
  def get_examples(numbers):
    targets = tf.numpy_function(
        get_windows, [numbers], tf.int32, stateful=False)
    targets = tf.ensure_shape(targets, [None, windows.shape[1]])
    return {
        "targets": targets,
        "targets_segmentation": tf.cast(
            tf.not_equal(targets, vocabulary_lib.PAD_ID), tf.int32),
    }
  return indices.batch(_WINDOWS_PER_LOOK_UP).map(get_examples).unbatch()


def _or_from_gin(files):
  """Gin fills in what TextFiles() leaves out, so one binding serves all."""
  return text_files.TextFiles() if files is None else files


def _targets_vocabulary(vocabulary):
  """The one that encodes targets, where `run` has one for inputs too."""
  if isinstance(vocabulary, tuple):
    vocabulary = vocabulary[-1]
  if vocabulary is None:
    raise ValueError(
        "run.vocabulary=None, but text needs a vocabulary. Set run.vocabulary "
        "to @mtf_moe.ByteVocabulary() or @mtf_moe.SentencePieceVocabulary().")
  return vocabulary


def _window_length(sequence_length):
  """The length of targets, whether `run` has one or one for inputs too."""
  length = sequence_length
  if isinstance(sequence_length, dict):
    length = sequence_length.get("targets")
  if not _is_positive_integer(length):
    raise ValueError(
        f"run.sequence_length={sequence_length!r} is not allowed: give a "
        "positive integer, or a dict with one for 'targets'.")
  return length


def _is_positive_integer(value):
  return isinstance(value, int) and not isinstance(value, bool) and value > 0
