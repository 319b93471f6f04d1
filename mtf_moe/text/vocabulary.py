r"""Vocabularies: how text becomes the ids that a model reads, and back.

All follow the convention of mesh_tensorflow and T5: id 0 is padding, 1 ends a
document. As a program, this file trains a SentencePiece model:

  python -m mtf_moe.text.vocabulary --files='text/*.txt' \
      --model=text.model --vocab_size=2048
"""

import contextlib
import hashlib
import io
import os
import tempfile

from absl import flags
import gin
from mesh_tensorflow.transformer import vocabulary as mtf_vocabulary
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import mistakes
from mtf_moe.run import paths
from mtf_moe.text import encoding
from mtf_moe.text import sentencepiece_graph
from mtf_moe.text import text_files

_PROGRAM = "mtf_moe.text.vocabulary"

PAD_ID = 0
EOS_ID = 1
_UNKNOWN_ID = 2
_NUM_RESERVED_IDS = 3

# SentencePiece writes a space as this character. A text that contains the
# character itself would lose it, so it must travel as bytes instead.
_SPACE_MARK = "\u2581"

# Longer texts are encoded in blocks of about this many characters, since it
# takes memory: SentencePiece some 45 bytes a character, a list of ids 8 to 36.
_BLOCK_CHARS = 2**16


_as_operations = False


@contextlib.contextmanager
def as_operations():
  """Vocabularies use no Python in graphs, for those that leave this process."""
  global _as_operations
  before, _as_operations = _as_operations, True
  try:
    yield
  finally:
    _as_operations = before


@gin.configurable(module="mtf_moe")
class ByteVocabulary(mtf_vocabulary.Vocabulary):
  """One id for each byte of UTF-8: id = byte + 3. Loses nothing.

  Ids 0 (padding), 1 (end of document) and 2 (unused) stand for no text, and
  neither do ids from 259 on, which exist because mesh_tensorflow rounds the
  vocabulary of a model up: decoding skips them all. mesh_tensorflow negates an
  id to leave it out of the loss; it is decoded like the positive one.
  """

  @property
  def vocab_size(self):
    """The number of ids, reserved ones included: 259."""
    return 256 + _NUM_RESERVED_IDS

  def encode(self, s):
    """Turns a string into a list of integers, without an end-of-document id."""
    return [byte + _NUM_RESERVED_IDS for byte in s.encode("utf-8")]

  def blocks(self, text):
    """Cuts a string into a list of those that may be encoded one by one."""
    return [text[start:start + _BLOCK_CHARS]
            for start in range(0, len(text), _BLOCK_CHARS)]

  def decode(self, ids):
    """Turns integers into a string, U+FFFD for bytes that are not UTF-8."""
    values = (abs(i) - _NUM_RESERVED_IDS for i in ids)
    data = bytes(value for value in values if 0 <= value < 256)
    return data.decode("utf-8", errors="replace")

  def encode_tf(self, s):
    """Turns a string scalar into an int32 tensor [length]."""
    return tf.cast(tf.decode_raw(s, tf.uint8), tf.int32) + _NUM_RESERVED_IDS

  def decode_tf(self, ids):
    """Turns integers [..., length] into a string tensor [...]."""
    texts = [b""] * _NUM_RESERVED_IDS + [bytes([b]) for b in range(256)]
    ids = tf.abs(ids)
    ids = tf.where_v2(ids < self.vocab_size, ids, PAD_ID)
    data = tf.strings.reduce_join(tf.gather(tf.constant(texts), ids), axis=-1)
    return tf.strings.unicode_transcode(data, "UTF-8", "UTF-8")


@gin.configurable(module="mtf_moe")
class SentencePieceVocabulary(mtf_vocabulary.Vocabulary):
  """The pieces of a SentencePiece model.

  `train_sentencepiece` makes models that lose nothing of a text. A model from
  elsewhere may: many rewrite Unicode and white space.

  Decoding skips ids that stand for no text, and takes negative ids for positive
  ones, as `ByteVocabulary` does. The in-graph methods call Python, except in a
  model that is exported (`as_operations`).
  """

  def __init__(self, path=gin.REQUIRED):
    """Loads a model.

    Args:
      path: a string, the path of the SentencePiece model file.

    Raises:
      ImportError: sentencepiece is not installed.
      ValueError: there is no such file, it is not a SentencePiece model, or its
        padding id is not 0 or its end-of-sequence id not 1.
    """
    self._path = path
    self._processor = _load_sentencepiece(path)
    self._mark_as_bytes = self._ids_of_space_mark()
    self._lines_are_apart = self._encodes_each_line_by_itself()

  @property
  def path(self):
    """The path of the model file."""
    return self._path

  @property
  def fingerprint(self):
    """A string that differs between models."""
    return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()

  @property
  def vocab_size(self):
    """The number of ids, reserved ones included."""
    return self._processor.get_piece_size()

  def encode(self, s):
    """Turns a string into a list of integers, without an end-of-document id."""
    if not self._mark_as_bytes or _SPACE_MARK not in s:
      return self._processor.encode(s)
    first, *others = s.split(_SPACE_MARK)
    ids = self._processor.encode(first)
    for part in others:
      ids += self._mark_as_bytes + self._processor.encode(part)
    return ids

  def blocks(self, text):
    """Cuts a string, at ends of lines, into a list as `ByteVocabulary` does."""
    if len(text) <= _BLOCK_CHARS or not self._lines_are_apart:
      return [text]
    blocks = []
    start = 0
    while start < len(text):
      whole = start + _BLOCK_CHARS
      end = (text.rfind("\n", start, whole) + 1
             or text.find("\n", whole) + 1 or len(text))
      blocks.append(text[start:end])
      start = end
    return blocks

  def decode(self, ids):
    """Turns integers into a string, U+FFFD for bytes that are not UTF-8."""
    ids = (abs(int(i)) for i in ids)
    return self._processor.decode([i for i in ids if i < self.vocab_size])

  def encode_tf(self, s):
    """Turns a string scalar into an int32 tensor [length]."""
    if _as_operations:
      return self._pieces().encode(s)

    def encode_bytes(text):
      return np.array(self.encode(text.decode("utf-8")), np.int32)
    ids = tf.numpy_function(encode_bytes, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def decode_tf(self, ids):
    """Turns integers [..., length] into a string tensor [...]."""
    if _as_operations:
      return self._pieces().decode(ids)
    ids = tf.convert_to_tensor(ids)

    def decode_rows(array):
      rows = array.reshape([-1, array.shape[-1]])
      texts = [self.decode(row).encode("utf-8") for row in rows]
      return np.array(texts, object).reshape(array.shape[:-1])
    texts = tf.numpy_function(decode_rows, [ids], tf.string, stateful=False)
    return tf.ensure_shape(texts, ids.shape[:-1])

  def _pieces(self):
    """The model, for operations."""
    try:
      return sentencepiece_graph.Pieces.of(
          self._processor.serialized_model_proto())
    except sentencepiece_graph.NotRepresentableError as error:
      raise ValueError(
          f"SentencePieceVocabulary.path={self._path!r} {error}, which cannot "
          "be exported: a served model encodes text by operations of "
          "TensorFlow alone. Models that can be exported are made by `python "
          "-m mtf_moe.text.vocabulary`, or use @mtf_moe.ByteVocabulary()."
          ) from error

  def _ids_of_space_mark(self):
    """The bytes of the space mark, or [] if the model cannot keep it anyway."""
    spaces = "  a  b  "
    keeps_spaces = self._processor.decode(
        self._processor.encode(spaces)) == spaces
    ids = [self._processor.piece_to_id(f"<0x{byte:02X}>")
           for byte in _SPACE_MARK.encode("utf-8")]
    has_bytes = all(self._processor.is_byte(i) for i in ids)
    return ids if keeps_spaces and has_bytes else []


  def _encodes_each_line_by_itself(self):
    """Whether a text's ids are those of its lines, whatever the lines are."""
    encode = self._processor.encode
    pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
    # Some models add or take away spaces where a text begins or ends.
    return (not any("\n" in piece for piece in pieces)
            and encode("\n") == [self._processor.piece_to_id("<0x0A>")]
            and encode(" a \n b ") == encode(" a \n") + encode(" b "))


def _import_sentencepiece():
  """Returns the module, which only these vocabularies need."""
  try:
    import sentencepiece  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "SentencePieceVocabulary needs the sentencepiece package. Install it "
        "with `pip install 'mtf_moe[sentencepiece]'`, or use "
        "@mtf_moe.ByteVocabulary(), which needs nothing.") from error
  return sentencepiece


def _load_sentencepiece(path):
  """Returns the SentencePieceProcessor of a model file, checked."""
  sentencepiece = _import_sentencepiece()
  given = f"SentencePieceVocabulary.path={path!r}"
  remedy = ("Train a model with `python -m mtf_moe.text.vocabulary "
            "--files=GLOB --model=PATH --vocab_size=N`.")
  try:
    with open(path, "rb") as f:
      model_proto = f.read()
  except (OSError, TypeError) as error:
    raise ValueError(
        f"{given} cannot be read ({error}). Give the path of a SentencePiece "
        f"model file. {remedy}") from error
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(model_proto)
  except RuntimeError as error:
    raise ValueError(
        f"{given} is not a SentencePiece model. {remedy}") from error
  special_ids = (processor.pad_id(), processor.eos_id())
  if special_ids != (PAD_ID, EOS_ID):
    raise ValueError(
        f"{given} has padding id {special_ids[0]} and end-of-sequence id "
        f"{special_ids[1]} (-1: none); mesh_tensorflow needs {PAD_ID} and "
        f"{EOS_ID}. {remedy}")
  return processor


def train_sentencepiece(files, model_path, vocab_size, num_threads=2):
  """Trains a SentencePiece model that decodes to exactly the text it encoded.

  Text is not normalised, spaces and line ends are kept, and characters without
  a piece of their own become the pieces of their bytes. The method is byte-pair
  encoding: on some 10 MB of English it takes seconds, and tokens come out as
  long as with the unigram method. The same files give the same model.

  Train on the training part only: pieces learnt from held-out text flatter the
  figures on it.

  Args:
    files: a pattern of paths, or a list of patterns, as in `TextFiles.glob`.
    model_path: a string, where to write the model. It appears there only when
      complete; its directory is made if need be.
    vocab_size: an integer, the number of ids: 0 padding, 1 end of document, 2
      unknown (never used), 256 bytes, and the rest pieces of the text.
    num_threads: an integer.

  Raises:
    ImportError: sentencepiece is not installed.
    ValueError: files are missing or not UTF-8, vocab_size is too small or too
      large for the text, or model_path cannot be written, or holds a file that
      is no SentencePiece model, which is left as it is.
  """
  sentencepiece = _import_sentencepiece()
  documents = text_files.read_documents(files, "train_sentencepiece: files")
  _check_model_path(model_path, documents)
  lines = (line for document in documents
           for line in document.text.split("\n") if line)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=_UNKNOWN_ID,
        bos_id=-1,  # No beginning-of-sentence id.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        max_sentence_length=2**30,  # Bytes; longer lines would be left out.
        num_threads=num_threads,
        minloglevel=2)  # Errors only.
  except RuntimeError as error:
    reason = str(error).split("] ")[-1]  # Without the line of C++ it is from.
    raise ValueError(
        f"train_sentencepiece: vocab_size={vocab_size} does not suit the "
        f"{len(documents)} file(s) of {files!r}; SentencePiece says: {reason} "
        "The reserved ids, the bytes and the characters of the text need some "
        "300 to 400 ids, and only a long text carries a large vocabulary."
        ) from error
  _write_atomically(model_path, model.getvalue())


def _check_model_path(path, documents):
  """Sees that a model can be written there, and replaces no other file."""
  given = f"model_path (--model) = {path!r}"
  remedy = 'give the path of a new file, such as "text.model"'
  if not path or os.path.isdir(path) or path.endswith(os.sep):
    raise ValueError(f"{given} is no path of a file: {remedy}.")
  if os.path.lexists(path):
    for document in documents:
      if os.path.exists(path) and os.path.samefile(path, document.path):
        raise ValueError(
            f"{given} is one of the files to train on (--files), "
            f"{document.path}, which it would replace: {remedy}.")
    if not _is_sentencepiece_model(path):
      raise ValueError(
          f"{given} is there already, and is no SentencePiece model, so it is "
          f"not replaced: {remedy}.")
  obstacle = paths.obstacle(os.path.dirname(os.path.abspath(path)))
  if obstacle is not None:
    raise ValueError(f"{given} cannot be written in {obstacle}: {remedy}.")


def _is_sentencepiece_model(path):
  """Whether a file is one, of whatever kind."""
  if not os.path.isfile(path):
    return False
  with open(path, "rb") as f:
    model_proto = f.read()
  try:
    return _import_sentencepiece().SentencePieceProcessor(
        ).LoadFromSerializedProto(model_proto)
  except RuntimeError:
    return False


def _write_atomically(path, data):
  """Writes bytes so that the path never shows a part of them."""
  directory = os.path.dirname(os.path.abspath(path))
  os.makedirs(directory, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=directory, delete=False) as f:
    f.write(data)
  os.chmod(f.name, 0o644)  # NamedTemporaryFile makes files private.
  os.replace(f.name, path)


@mistakes.told(_PROGRAM)
def _main(argv):
  """Trains a SentencePiece model from the command line."""
  del argv
  args = flags.FLAGS
  train_sentencepiece(args.files, args.model, args.vocab_size)
  vocabulary = SentencePieceVocabulary(args.model)
  documents = text_files.read_documents(args.files, "--files")
  num_bytes = sum(document.num_bytes for document in documents)
  with console.opened():
    tokens = encoding.encode(documents, vocabulary, EOS_ID)
  num_tokens = sum(tokens.lengths - 1)  # Without the ends of documents.
  print(f"{args.model}: {vocabulary.vocab_size} ids, trained on "
        f"{len(documents)} files, {num_bytes} bytes, {num_tokens} tokens, "
        f"{num_bytes / num_tokens:.3f} bytes per token")


if __name__ == "__main__":
  flags.DEFINE_multi_string(
      "files", None, "Pattern of text files to train on, such as 'text/*.txt' "
      "or 'package:NAME/PATTERN'. May be given several times.", required=True)
  flags.DEFINE_string("model", None, "Where to write the model.", required=True)
  flags.DEFINE_integer("vocab_size", None, "Number of ids.", required=True,
                       lower_bound=1)
  mistakes.run(_PROGRAM, _main)
