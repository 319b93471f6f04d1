"""A SentencePiece model as plain operations of TensorFlow.

For exported models: what serves them knows TensorFlow and nothing else. It does
what byte-pair encoding does, as slowly as it sounds, so it is for prompts, not
for data. Of models, it knows those that leave text as it is, such as those that
`vocabulary.train_sentencepiece` makes; it needs no sentencepiece itself.
"""

from collections.abc import Sequence
import dataclasses
import struct

from google.protobuf import empty_pb2
from google.protobuf import unknown_fields
import tensorflow.compat.v1 as tf

_SPACE_MARK = "\u2581".encode()  # A space, in the names of pieces.
_REPLACEMENT = "\ufffd".encode()
# In no text, so that nothing is merged across it.
_BARRIER = b"\xff"

# Numbers of fields and values in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_MODEL_TYPE, _BYTE_PAIR_ENCODING = 3, 2
_SUFFIX_SPACES, _BYTE_FALLBACK, _UNKNOWN_SURFACE = 24, 35, 44
_CHARACTER_MAP, _DUMMY_PREFIX, _FEWER_SPACES, _SPACES_AS_MARKS = 2, 3, 4, 5


class NotRepresentableError(ValueError):
  """The model does something that this module does not know."""


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A model.

  Attributes:
    texts: what each id stands for, in bytes; nothing for control ids.
    names: the pieces that characters are merged into, in bytes.
    ids: of each of these.
    scores: of each of these; the pair with the highest is merged first.
    byte_ids: the ids of the 256 bytes, for characters that are no piece.
  """

  texts: Sequence[bytes]
  names: Sequence[bytes]
  ids: Sequence[int]
  scores: Sequence[float]
  byte_ids: Sequence[int]

  @classmethod
  def of(cls, model: bytes) -> "Pieces":
    """Reads a model.

    Args:
      model: the content of a SentencePiece model file.

    Raises:
      NotRepresentableError: if the model does more than to merge pairs.
    """
    fields = _fields(model)
    trainer = dict(_fields(dict(fields)[_TRAINER]))
    _check(trainer, dict(fields))
    unknown = trainer.get(_UNKNOWN_SURFACE, " \u2047 ".encode())
    texts, merged, byte_ids = [], [], {}
    for i, piece in enumerate(
        dict(_fields(data)) for number, data in fields if number == _PIECES):
      name, kind = piece.get(1, b""), piece.get(3, _NORMAL)
      if kind == _NORMAL:
        merged.append((name, i, _as_float(piece.get(2, 0))))
        texts.append(name.replace(_SPACE_MARK, b" "))
      elif kind == _BYTE:  # Such as <0x0A>.
        byte = int(name[3:-1], 16)
        byte_ids[byte] = i
        texts.append(bytes([byte]))
      elif kind in (_CONTROL, _UNKNOWN):
        texts.append(unknown if kind == _UNKNOWN else b"")
      else:
        raise NotRepresentableError(
            f"has pieces that a user defined or does not use, such as {name!r}")
    if not merged:
      raise NotRepresentableError("has no pieces")
    names, ids, scores = zip(*merged)
    return cls(texts, names, ids, scores, [byte_ids[b] for b in range(256)])

  def encode(self, text: tf.Tensor) -> tf.Tensor:
    """Turns a string scalar into an int32 tensor [length]."""
    characters = _characters(text)
    # A mark that is in the text must not come back as a space.
    symbols = tf.where_v2(
        tf.equal(characters, " "), _SPACE_MARK, tf.where_v2(
            tf.equal(characters, _SPACE_MARK), _BARRIER, characters))
    table = _Table(self.names)
    symbols, _ = tf.while_loop(
        lambda symbols, merging: merging,
        lambda symbols, merging: self._merge(table, symbols),
        (tf.concat([symbols, [_BARRIER]], 0), tf.constant(True)),
        shape_invariants=(tf.TensorShape([None]), tf.TensorShape([])))
    return self._ids_of(table, symbols[:-1])

  def decode(self, ids: tf.Tensor) -> tf.Tensor:
    """Turns integers [..., length] into a string tensor [...].

    Skips ids that stand for no text, and takes negative ids for positive ones.
    """
    ids = tf.abs(tf.convert_to_tensor(ids))
    ids = tf.where_v2(ids < len(self.texts), ids, len(self.texts))
    data = tf.strings.reduce_join(
        tf.gather(tf.constant([*self.texts, b""]), ids), axis=-1)
    return tf.reshape(_valid(tf.reshape(data, [-1])), tf.shape(data))

  def _merge(self, table, symbols):
    """Merges the best pair, the first of those; and whether there was one."""
    pairs = tf.strings.join([symbols[:-1], symbols[1:]])
    found = table.find(pairs)
    scores = tf.where_v2(
        found >= 0, tf.gather(self.scores, tf.maximum(found, 0)), -float("inf"))
    scores = tf.concat([scores, [-float("inf")]], 0)  # Of no pair.
    first = tf.argmax(scores, output_type=tf.int32)
    merging = scores[first] > -float("inf")
    number = tf.cast(merging, tf.int32)
    return tf.concat([
        symbols[:first], pairs[first:first + number],
        symbols[first + 2 * number:]], 0), merging

  def _ids_of(self, table, symbols):
    """The ids of symbols, or of the bytes of those that are no piece."""
    found = table.find(symbols)
    symbols = tf.where_v2(tf.equal(symbols, _BARRIER), _SPACE_MARK, symbols)
    sizes = tf.where_v2(found >= 0, 1, tf.strings.length(symbols))
    row = tf.repeat(tf.range(tf.size(sizes)), sizes)
    place = tf.range(tf.size(row)) - tf.gather(
        tf.cumsum(sizes, exclusive=True), row)
    byte = tf.reshape(tf.decode_raw(tf.strings.substr(
        tf.gather(symbols, row), place, tf.ones_like(place)), tf.uint8), [-1])
    found = tf.gather(found, row)
    return tf.where_v2(
        found >= 0, tf.gather(self.ids, tf.maximum(found, 0)),
        tf.gather(self.byte_ids, tf.cast(byte, tf.int32)))


class _Table:
  """Finds strings. Has no state that a served model would have to initialize.
  """

  def __init__(self, strings):
    self._strings = tf.constant(strings)
    hashes = self._hash(self._strings)
    self._order = tf.argsort(hashes)
    self._hashes = tf.gather(hashes, self._order)

  def find(self, strings):
    """The position of each among the strings of the table, or -1."""
    place = tf.searchsorted(self._hashes, self._hash(strings))
    found = tf.gather(
        self._order, tf.minimum(place, tf.size(self._order) - 1))
    return tf.where_v2(
        tf.equal(tf.gather(self._strings, found), strings), found, -1)

  def _hash(self, strings):
    return tf.strings.to_hash_bucket_fast(strings, 2 ** 62)


def _check(trainer, fields):
  """Raises NotRepresentableError for what is not known here."""
  normalizer = dict(_fields(fields.get(_NORMALIZER, b"")))
  denormalizer = dict(_fields(fields.get(_DENORMALIZER, b"")))
  for wrong, said in [
      (trainer.get(_MODEL_TYPE, 1) != _BYTE_PAIR_ENCODING,
       "is of another type than byte-pair encoding"),
      (normalizer.get(_CHARACTER_MAP) or denormalizer.get(_CHARACTER_MAP),
       "rewrites characters"),
      (normalizer.get(_DUMMY_PREFIX, 1) or normalizer.get(_FEWER_SPACES, 1)
       or not normalizer.get(_SPACES_AS_MARKS, 1)
       or trainer.get(_SUFFIX_SPACES, 0), "rewrites spaces"),
      (not trainer.get(_BYTE_FALLBACK, 0), "has no pieces for bytes")]:
    if wrong:
      raise NotRepresentableError(said)


def _fields(message):
  """The numbers and values of the fields of a message of protobuf."""
  # Without sentencepiece's own module, which wants a later protobuf than some
  # releases of TensorFlow have.
  return [(field.field_number, field.data)
          for field in unknown_fields.UnknownFieldSet(
              empty_pb2.Empty.FromString(message))]


def _as_float(bits):
  return struct.unpack("<f", struct.pack("<I", bits))[0]


def _characters(text):
  """The characters of a string scalar in UTF-8, in strings [length].

  tf.strings.unicode_split would replace some that Unicode will never assign.
  """
  data = tf.decode_raw(text, tf.uint8)
  follows = tf.equal(tf.bitwise.bitwise_and(data, 0xC0), 0x80)
  starts = tf.reshape(tf.where_v2(tf.logical_not(follows)), [-1])
  ends = tf.concat(
      [starts[1:], [tf.size(data, out_type=tf.int64)]], 0)[:tf.size(starts)]
  return tf.strings.substr(
      tf.fill(tf.shape(starts), text), starts, ends - starts)


def _valid(texts):
  """Puts U+FFFD in place of each byte of what is not UTF-8, in strings [n].

  As SentencePiece does; TensorFlow's functions put one for several bytes.
  """
  codes, starts = tf.strings.unicode_decode_with_offsets(texts, "UTF-8")
  row, starts = starts.value_rowids(), tf.cast(starts.values, tf.int32)
  next_row = tf.concat([row[1:], [-1]], 0)[:tf.size(row)]
  sizes = tf.where_v2(
      tf.equal(row, next_row),
      tf.concat([starts[1:], [0]], 0)[:tf.size(row)],
      tf.gather(tf.strings.length(texts), row)) - starts
  characters = tf.strings.substr(tf.gather(texts, row), starts, sizes)
  invalid = tf.logical_and(
      tf.equal(codes.values, 0xFFFD), tf.not_equal(characters, _REPLACEMENT))
  repeats = tf.where_v2(invalid, sizes, 1)
  return tf.strings.unsorted_segment_join(
      tf.repeat(tf.where_v2(invalid, _REPLACEMENT, characters), repeats),
      tf.repeat(row, repeats), tf.size(texts))
