"""Documents to token ids: in blocks, on all cores, and a large text only once.

The tokens of a large text are kept in a file beside the vocabulary's model, so
that a run that starts again, or another run on the same text, reads them.
"""

from concurrent import futures
import dataclasses
import hashlib
import os
import tempfile
import zipfile

import numpy as np

from mtf_moe.run import console

# Encoding takes about half a second per megabyte and core. Less text than this
# is encoded again at each start, and leaves no file behind.
_BYTES_WORTH_KEEPING = 32 * 10**6

# To be raised when the same vocabulary and text give other tokens, or the file
# of tokens has other contents.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The token ids of documents.

  Attributes:
    ids: an array [num_tokens] of unsigned integers, of the narrowest type that
      holds the vocabulary: the ids of each document in turn, each time followed
      by the end-of-document id.
    lengths: an integer array [num_documents]: how many of the ids belong to
      each, the end-of-document id included.
  """
  ids: np.ndarray
  lengths: np.ndarray

  def of_each_document(self):
    """A list of arrays, views of `ids`, one a document."""
    ends = np.cumsum(self.lengths)
    return [self.ids[end - length:end]
            for end, length in zip(ends, self.lengths, strict=True)]


def encode(documents, vocabulary, end_id):
  """Encodes documents, or reads what was encoded before.

  A vocabulary may have, beside the method `encode` of mesh_tensorflow's:

    blocks(text): a list of strings that join to `text` and may be encoded one
      by one, which takes less memory for a long text.
    path, fingerprint: the path of its model, beside which to keep the tokens,
      and a string that differs where `encode` does.

  Args:
    documents: a list of Document.
    vocabulary: a Vocabulary of mesh_tensorflow.transformer.
    end_id: an integer, the end-of-document id.

  Returns:
    Tokens.

  Raises:
    ValueError: the vocabulary does not encode.
  """
  num_bytes = sum(document.num_bytes for document in documents)
  if num_bytes < _BYTES_WORTH_KEEPING or not hasattr(vocabulary, "fingerprint"):
    return _encode(documents, vocabulary, end_id)
  path = (f"{vocabulary.path}."
          f"{_fingerprint(documents, vocabulary, end_id)}.npz")
  tokens = _read(path)
  if tokens is None:
    console.say(f"encoding {num_bytes / 1e6:,.0f} MB of text once; its tokens "
                f"are kept in {path}")
    tokens = _encode(documents, vocabulary, end_id)
    _keep(tokens, path)
  return tokens


def _encode(documents, vocabulary, end_id):
  """Makes Tokens of documents, with a thread for each core.

  Threads help where `encode` lets go of Python's lock, as that of SentencePiece
  does.
  """
  # Most vocabularies fit into 16 bits, a fraction of what Python's integers
  # take.
  dtype = np.min_scalar_type(vocabulary.vocab_size)
  def encode_block(text):
    return np.array(vocabulary.encode(text), dtype)

  blocks_of = getattr(vocabulary, "blocks", lambda text: [text])
  end = np.array([end_id], dtype)
  arrays, lengths = [], []
  try:
    with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
      blocks = [blocks_of(document.text) for document in documents]
      encoded = threads.map(
          encode_block, (block for part in blocks for block in part))
      for part in blocks:
        start = len(arrays)
        arrays += [next(encoded) for _ in part] + [end]
        lengths.append(sum(map(len, arrays[start:])))
  except NotImplementedError as error:
    raise ValueError(
        f"run.vocabulary is a {type(vocabulary).__name__}, which does not "
        "encode text: give it a method `encode`, or use "
        "@mtf_moe.ByteVocabulary().") from error
  return Tokens(np.concatenate(arrays) if arrays else np.zeros([0], dtype),
                np.array(lengths, np.int64))


def _fingerprint(documents, vocabulary, end_id):
  """A string that differs where the tokens do, wherever the files are."""
  digest = hashlib.sha256(
      f"{_FORMAT} {vocabulary.fingerprint} {end_id}".encode())
  for document in documents:
    data = document.text.encode("utf-8")
    digest.update(b" %d " % len(data))
    digest.update(data)
  return digest.hexdigest()[:16]


def _read(path):
  """Returns the Tokens of a file, None if there is none that can be read."""
  try:
    with np.load(path) as kept:
      return Tokens(kept["ids"], kept["lengths"])
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
    return None


def _keep(tokens, path):
  """Writes Tokens so that the path never shows a part of them.

  They can be made again, so that a folder in which nothing can be written, or a
  full disk, ends no run.
  """
  try:
    with tempfile.TemporaryDirectory(
        dir=os.path.dirname(path) or ".", prefix=".tokens-") as new:
      complete = os.path.join(new, "tokens.npz")
      np.savez(complete, ids=tokens.ids, lengths=tokens.lengths)
      os.replace(complete, path)
  except OSError as error:
    console.warn(f"could not keep the tokens, which will be encoded anew at "
                 f"the next start: {error}")
