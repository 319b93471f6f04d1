"""Text as tokens: the same in blocks and on threads, and kept for next time."""

import os
import shutil

import numpy as np
import pytest

from mtf_moe.text import encoding
from mtf_moe.text.text_files import Document
from mtf_moe.text.vocabulary import ByteVocabulary
from mtf_moe.text.vocabulary import SentencePieceVocabulary
from mtf_moe.text.vocabulary import train_sentencepiece

END = 1
LINES = ["The state of the Union is strong,\n", "  and it grows  \n", "\n",
         "\u2581 caf\u00e9 \u2460\r\n", "\t\tstronger. 😀\n"]
# Several blocks, and a line that is longer than one.
LONG = "".join(LINES) * 3000 + "the Union " * 20_000 + "\n" + "no end of line"


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
  """The path of a SentencePiece model."""
  pytest.importorskip("sentencepiece")
  directory = tmp_path_factory.mktemp("text")
  (directory / "text.txt").write_text("".join(LINES) * 40, encoding="utf-8")
  path = str(directory / "text.model")
  train_sentencepiece(str(directory / "text.txt"), path, vocab_size=300)
  return path


@pytest.fixture(name="vocabulary", params=["bytes", "sentencepiece"])
def _vocabulary(request):
  if request.param == "bytes":
    return ByteVocabulary()
  return SentencePieceVocabulary(request.getfixturevalue("model"))


@pytest.fixture(name="copied")
def _copied(model, tmp_path):
  """A vocabulary whose model has a folder of its own."""
  path = str(tmp_path / "own" / "text.model")
  os.mkdir(tmp_path / "own")
  shutil.copy(model, path)
  return SentencePieceVocabulary(path)


@pytest.fixture(name="any_text_is_kept")
def _any_text_is_kept(monkeypatch):
  monkeypatch.setattr(encoding, "_BYTES_WORTH_KEEPING", 0)


def documents(*texts):
  return [Document(f"{i}.txt", text) for i, text in enumerate(texts)]


def kept_beside(vocabulary):
  """The paths of tokens in the folder of a vocabulary's model."""
  directory = os.path.dirname(vocabulary.path)
  others = set(os.listdir(directory)) - {os.path.basename(vocabulary.path)}
  assert all(name.endswith(".npz") for name in others)
  return sorted(os.path.join(directory, name) for name in others)


def test_each_document_has_its_ids_and_an_end(vocabulary):
  texts = ["", *LINES, LONG, "", "last"]
  tokens = encoding.encode(documents(*texts), vocabulary, END)
  assert tokens.ids.dtype == np.uint16
  assert sum(tokens.lengths) == len(tokens.ids)
  ids = [part.tolist() for part in tokens.of_each_document()]
  assert ids == [[*vocabulary.encode(text), END] for text in texts]


def test_no_documents(vocabulary):
  tokens = encoding.encode([], vocabulary, END)
  assert tokens.ids.shape == tokens.lengths.shape == (0,)
  assert not tokens.of_each_document()


def test_blocks(vocabulary):
  blocks = vocabulary.blocks(LONG)
  assert "".join(blocks) == LONG
  assert len(blocks) >= 4
  if isinstance(vocabulary, SentencePieceVocabulary):
    assert all(block.endswith("\n") for block in blocks[:-1])


@pytest.mark.parametrize("options", [
    # A piece that reaches across lines; white space that texts gain or lose.
    {"user_defined_symbols": ["ong,\n  and"]}, {"user_defined_symbols": ["\n"]},
    {"add_dummy_prefix": True}, {"remove_extra_whitespaces": True},
    {"normalization_rule_name": "nmt_nfkc"}])
def test_models_for_which_lines_are_not_apart(options, model, tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  sentencepiece.SentencePieceTrainer.train(**{
      "input": os.path.join(os.path.dirname(model), "text.txt"),
      "model_prefix": str(tmp_path / "other"), "model_type": "bpe",
      "vocab_size": 300, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1,
      "normalization_rule_name": "identity", "byte_fallback": True,
      "add_dummy_prefix": False, "remove_extra_whitespaces": False,
      "minloglevel": 2, **options})
  vocabulary = SentencePieceVocabulary(str(tmp_path / "other.model"))
  assert vocabulary.blocks(LONG) == [LONG]


@pytest.mark.usefixtures("any_text_is_kept")
def test_tokens_are_kept_and_read(copied):
  texts = documents(*LINES)
  first = encoding.encode(texts, copied, END)
  path, = kept_beside(copied)
  # What is in the file is what comes out.
  np.savez(path, ids=first.ids[::-1], lengths=first.lengths)
  second = encoding.encode(texts, copied, END)
  assert second.ids.tolist() == first.ids[::-1].tolist()
  assert second.lengths.tolist() == first.lengths.tolist()


@pytest.mark.usefixtures("any_text_is_kept")
def test_other_tokens_have_another_file(copied, model):
  encoding.encode(documents("one", "two"), copied, END)
  for texts, end in [(("one", "tw"), END), (("onet", "wo"), END),
                     (("two", "one"), END), (("one", "two"), 2)]:
    before = kept_beside(copied)
    encoding.encode(documents(*texts), copied, end)
    assert len(kept_beside(copied)) == len(before) + 1
  train_sentencepiece(
      os.path.join(os.path.dirname(model), "text.txt"), copied.path, 299)
  before = kept_beside(copied)
  encoding.encode(
      documents("one", "two"), SentencePieceVocabulary(copied.path), END)
  assert len(kept_beside(copied)) == len(before) + 1


@pytest.mark.usefixtures("any_text_is_kept")
@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_a_file_that_is_cut_short_is_made_anew(share, copied):
  texts = documents(*LINES)
  first = encoding.encode(texts, copied, END)
  path, = kept_beside(copied)
  size = os.path.getsize(path)
  os.truncate(path, int(share * size))
  again = encoding.encode(texts, copied, END)
  assert again.ids.tolist() == first.ids.tolist()
  assert kept_beside(copied) == [path]
  assert os.path.getsize(path) == size


@pytest.mark.usefixtures("any_text_is_kept")
def test_a_folder_that_cannot_be_written(copied, caplog):
  shutil.rmtree(os.path.dirname(copied.path))
  tokens = encoding.encode(documents("one"), copied, END)
  assert tokens.ids.tolist() == [*copied.encode("one"), END]
  assert "could not keep the tokens" in caplog.text


def test_little_text_leaves_no_file(copied):
  encoding.encode(documents(LONG), copied, END)
  assert not kept_beside(copied)
