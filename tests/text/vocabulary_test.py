"""Vocabularies: their ids, that they lose nothing, and what they refuse."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.text import vocabulary as vocabulary_lib
from mtf_moe.text.vocabulary import ByteVocabulary
from mtf_moe.text.vocabulary import SentencePieceVocabulary
from mtf_moe.text.vocabulary import train_sentencepiece

# What tokenizers like to change: white space at the ends and in runs, line
# ends, composed and compatible characters, rare characters, names of special
# ids, the space mark of SentencePiece, its unknown sign, and nothing at all.
AWKWARD_TEXTS = (
    "", " ", "  two  spaces  ", "\n", "one\r\ntwo\n\n\tthree\n", "\0a\0",
    "e\u0301 \u00e9 \ufb01 \u2460", "日本語 😀 \U0010ffff", "\ufeffmark \ufffd",
    "<pad></s><unk><0x0A>", "\u2581", "a\u2581b \u2581\u2581 c", "\u2047 ?")

_TEXT = "The state of the Union is strong, and it grows stronger.\n" * 40


@pytest.fixture(scope="module", name="text_file")
def _text_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  path.write_text(_TEXT, encoding="utf-8")
  return str(path)


@pytest.fixture(scope="module", name="model_path")
def _model_path(text_file):
  pytest.importorskip("sentencepiece")
  path = os.path.join(os.path.dirname(text_file), "models", "text.model")
  train_sentencepiece(text_file, path, vocab_size=300)
  return path


@pytest.fixture(name="vocabulary", params=["bytes", "sentencepiece"])
def _vocabulary(request):
  if request.param == "bytes":
    return ByteVocabulary()
  return SentencePieceVocabulary(request.getfixturevalue("model_path"))


def _run(tensor):
  with tf.Session(graph=tensor.graph) as session:
    return session.run(tensor)


def test_a_byte_is_its_value_plus_three():
  vocabulary = ByteVocabulary()
  assert vocabulary.vocab_size == 259
  # A is 0x41, a line feed 0x0a, é is 0xc3 0xa9 in UTF-8.
  assert vocabulary.encode("A\né") == [65 + 3, 10 + 3, 195 + 3, 169 + 3]
  assert vocabulary.decode([68, 13, 198, 172]) == "A\né"


def test_bytes_that_are_not_text_are_skipped_or_replaced():
  vocabulary = ByteVocabulary()
  # Padding, end of document, unused, and what mesh_tensorflow rounds up to.
  assert vocabulary.decode([0, 68, 1, 69, 2, 259, 383]) == "AB"
  assert vocabulary.decode([-68, 69]) == "AB"  # No loss, but the same text.
  assert vocabulary.decode([198, 68]) == "\ufffdA"  # Half of é.


def test_sentencepiece_ids_follow_the_convention(model_path):
  vocabulary = SentencePieceVocabulary(model_path)
  assert vocabulary.vocab_size == 300
  ids = vocabulary.encode(_TEXT)
  assert min(ids) == 3 + 0x0a  # The byte pieces follow the 3 reserved ids.
  assert max(ids) < 300
  assert len(ids) < len(_TEXT) / 2
  assert vocabulary.decode([0, *vocabulary.encode("Union"), 1, 0]) == "Union"
  assert vocabulary.decode([-i for i in vocabulary.encode("is")]) == "is"
  assert vocabulary.decode([300, *vocabulary.encode("is"), 383]) == "is"


@pytest.mark.parametrize("text", [*AWKWARD_TEXTS, _TEXT])
def test_nothing_is_lost(vocabulary, text):
  ids = vocabulary.encode(text)
  assert all(3 <= i < vocabulary.vocab_size for i in ids)
  assert vocabulary.decode(ids) == text


def test_copies_are_equal(vocabulary):
  for other in (copy.deepcopy(vocabulary),
                pickle.loads(pickle.dumps(vocabulary))):
    assert other.encode(_TEXT) == vocabulary.encode(_TEXT)


def test_encoding_in_the_graph_is_the_same(vocabulary):
  with tf.Graph().as_default():
    for text in ("", "The Union, née 1776.\n"):
      ids = vocabulary.encode_tf(tf.constant(text.encode("utf-8")))
      assert ids.dtype == tf.int32
      assert ids.shape.rank == 1
      assert _run(ids).tolist() == vocabulary.encode(text)


def test_decoding_in_the_graph_is_the_same(vocabulary):
  # mesh_tensorflow decodes a whole batch at once, and any ids can come.
  ids = np.random.RandomState(0).randint(-3, 384, size=[2, 50, 20])
  with tf.Graph().as_default():
    texts = vocabulary.decode_tf(tf.constant(ids))
    assert texts.shape == [2, 50]
    got = _run(texts)
    one = _run(vocabulary.decode_tf(tf.constant(ids[0, 0])))
  expected = [[vocabulary.decode(row) for row in rows] for rows in ids.tolist()]
  assert [[text.decode("utf-8") for text in row] for row in got] == expected
  assert one.decode("utf-8") == expected[0][0]


def texts_of_pieces(vocabulary, number):
  """Texts made of random pieces, characters and bytes."""
  rng = np.random.RandomState(0)
  characters = [*"abé 日😀\u2581\ufffd\n", *AWKWARD_TEXTS]
  for _ in range(number):
    parts = [vocabulary.decode([int(i)]) if i >= 3 else characters[
        rng.randint(len(characters))]
             for i in rng.randint(0, 300, size=rng.randint(30))]
    yield "".join(parts)


def test_operations_do_as_sentencepiece_does(model_path):
  vocabulary = SentencePieceVocabulary(model_path)
  texts = [*AWKWARD_TEXTS, _TEXT[:200], "aaaaaaaa", *texts_of_pieces(
      vocabulary, 40)]
  # Any ids, but for those that end a text in the middle of a character.
  ids = np.random.RandomState(0).randint(2, 384, size=[500, 20])
  ids[::2] = 3 + ids[::2] % 256  # Bytes, hardly ever UTF-8.
  ids[:, 0] = -np.abs(ids[:, 0])
  ids[:, 15:] = np.arange(500)[:, None] % 3 // 2  # Padding, or ends.
  with tf.Graph().as_default() as graph, vocabulary_lib.as_operations():
    text = tf.placeholder(tf.string, [])
    encoded = vocabulary.encode_tf(text)
    assert encoded.dtype == tf.int32 and encoded.shape.rank == 1
    decoded = vocabulary.decode_tf(tf.constant(ids.reshape([5, 100, 20])))
    assert decoded.shape == [5, 100]
    assert not {"PyFunc", "PyFuncStateless", "EagerPyFunc"} & {
        op.type for op in graph.get_operations()}
    with tf.Session() as session:
      for expected in texts:
        assert session.run(encoded, {text: expected.encode()}).tolist() == (
            vocabulary.encode(expected)), expected
      got = session.run(decoded).reshape([-1])
  assert [text.decode() for text in got] == [
      vocabulary.decode(row) for row in ids]


@pytest.mark.parametrize("options, said", [
    ({"model_type": "unigram"}, "another type than byte-pair"),
    ({"normalization_rule_name": "nmt_nfkc"}, "rewrites characters"),
    ({"add_dummy_prefix": True}, "rewrites spaces"),
    ({"remove_extra_whitespaces": True}, "rewrites spaces"),
    ({"treat_whitespace_as_suffix": True}, "rewrites spaces"),
    ({"byte_fallback": False}, "has no pieces for bytes"),
    ({"user_defined_symbols": ["<x>"]}, "that a user defined"),
])
def test_what_operations_cannot_do(options, said, text_file, tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  options = {
      "model_type": "bpe", "normalization_rule_name": "identity",
      "add_dummy_prefix": False, "remove_extra_whitespaces": False,
      "byte_fallback": True, "allow_whitespace_only_pieces": True, **options}
  path = str(tmp_path / "a.model")
  with open(path, "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
        input=text_file, model_writer=f, vocab_size=290, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2, **options)
  vocabulary = SentencePieceVocabulary(path)
  with tf.Graph().as_default(), vocabulary_lib.as_operations():
    for method, value in (("encode_tf", "a"), ("decode_tf", [[3]])):
      with pytest.raises(ValueError, match=(
          rf"SentencePieceVocabulary\.path='{path}' .*{said}.* cannot be "
          "exported")):
        getattr(vocabulary, method)(tf.constant(value))


def test_training_twice_gives_the_same_model(text_file, model_path, tmp_path):
  again = tmp_path / "again.model"
  train_sentencepiece([text_file], str(again), vocab_size=300)
  with open(model_path, "rb") as f:
    model = f.read()
  assert again.read_bytes() == model
  assert os.path.dirname(text_file).encode() not in model


@pytest.mark.parametrize("vocab_size", [100, 30000])
def test_a_vocabulary_that_does_not_suit_the_text(
    text_file, tmp_path, vocab_size):
  pytest.importorskip("sentencepiece")
  with pytest.raises(ValueError, match=(
      f"vocab_size={vocab_size} does not suit the 1 file.*Vocabulary size")):
    train_sentencepiece(text_file, str(tmp_path / "a.model"), vocab_size)
  assert not list(tmp_path.iterdir())


def test_no_file_is_replaced_but_a_model(text_file, model_path, tmp_path):
  pytest.importorskip("sentencepiece")
  text, other = tmp_path / "a.txt", tmp_path / "other"
  with open(text_file, "rb") as f:
    text.write_bytes(f.read())
  other.write_text("Something of mine.")
  (tmp_path / "link").symlink_to(text)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  for path, said in [
      (text, "is one of the files to train on"),
      (tmp_path / "link", "is one of the files"),
      (tmp_path / "." / ".." / tmp_path.name / "a.txt", "is one of the files"),
      (other, "is there already, and is no SentencePiece model"),
      (text / "v", rf"cannot be written in {text}: Not a directory"),
      ("", "is no path of a file"), (".", "is no path of a file")]:
    with pytest.raises(ValueError, match=rf"\(--model\) = .*{said}"):
      train_sentencepiece(str(text), str(path), vocab_size=300)
  assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  model = tmp_path / "model"
  with open(model_path, "rb") as f:
    model.write_bytes(f.read())
  train_sentencepiece(str(text), str(model), vocab_size=290)
  assert SentencePieceVocabulary(str(model)).vocab_size == 290


def test_missing_or_broken_model_file(tmp_path):
  pytest.importorskip("sentencepiece")
  for path in (str(tmp_path / "none.model"), str(tmp_path), "", None):
    with pytest.raises(ValueError, match=(
        r"SentencePieceVocabulary\.path=.* cannot be read.*"
        r"python -m mtf_moe\.text\.vocabulary")):
      SentencePieceVocabulary(path)
  for content in (b"", b"not a model"):
    broken = tmp_path / "broken.model"
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=(
        r"SentencePieceVocabulary\.path=.*broken\.model.*is not a "
        r"SentencePiece model.*python -m")):
      SentencePieceVocabulary(str(broken))


def test_model_with_other_special_ids(text_file, tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  path = tmp_path / "default_ids.model"
  with path.open("wb") as f:
    sentencepiece.SentencePieceTrainer.train(
        input=text_file, model_writer=f, vocab_size=25, minloglevel=2)
  with pytest.raises(ValueError, match=(
      r"SentencePieceVocabulary\.path=.*padding id -1 and end-of-sequence id 2 "
      r".*needs 0 and 1")):
    SentencePieceVocabulary(str(path))


def test_sentencepiece_is_optional(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  with pytest.raises(ImportError, match=r"mtf_moe\[sentencepiece\]"):
    SentencePieceVocabulary(str(tmp_path / "any.model"))
  with pytest.raises(ImportError, match=r"mtf_moe\[sentencepiece\]"):
    train_sentencepiece("any", str(tmp_path / "any.model"), 300)


def test_command_line(text_file, tmp_path, model_path):
  path = tmp_path / "new" / "text.model"
  done = subprocess.run(
      [sys.executable, "-m", "mtf_moe.text.vocabulary",
       f"--files={text_file}", f"--model={path}", "--vocab_size=300"],
      capture_output=True, text=True, check=True)
  num_tokens = len(SentencePieceVocabulary(str(path)).encode(_TEXT))
  assert done.stdout == (
      f"{path}: 300 ids, trained on 1 files, 2280 bytes, {num_tokens} tokens, "
      f"{2280 / num_tokens:.3f} bytes per token\n")
  with open(model_path, "rb") as f:
    assert path.read_bytes() == f.read()
