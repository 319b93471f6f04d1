"""Exported models, served where nothing but TensorFlow is known."""

import dataclasses
import json
import os
import subprocess
import sys

import gin
from mesh_tensorflow.transformer import vocabulary as mtf_vocabulary
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.text.vocabulary import ByteVocabulary
from mtf_moe.text.vocabulary import SentencePieceVocabulary
from mtf_moe.text.vocabulary import train_sentencepiece
from mtf_moe.train import export
from tests.train.program import write_text
from tests.train.small_models import GREEDY
from tests.train.small_models import LENGTH
from tests.train.small_models import ONE_SLICE
from tests.train.small_models import Model
from tests.train.small_models import continuations
from tests.train.small_models import run

PIECES = 300

# Only TensorFlow is known here.
SERVE = """
import json, sys
import tensorflow as tf
path, inputs = json.load(sys.stdin)
call = tf.saved_model.load(path).signatures["serving_default"]
found = call(**{name: tf.constant(texts) for name, texts in inputs.items()})
assert not {"mesh_tensorflow", "mtf_moe", "sentencepiece"} & set(sys.modules)
print(json.dumps({name: value.numpy().tolist()
                  for name, value in found.items()}, default=bytes.decode))
"""


def served(path, **inputs):
  """What an exported model answers in a process of its own."""
  result = subprocess.run(
      [sys.executable, "-c", SERVE], input=json.dumps([path, inputs]),
      check=True, stdout=subprocess.PIPE, text=True, cwd=path)
  return json.loads(result.stdout)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory):
  """A Model of a few steps, with the pieces of SentencePiece."""
  pytest.importorskip("sentencepiece")
  directory = tmp_path_factory.mktemp("pieces")
  write_text(directory)
  train_sentencepiece(
      f"{directory}/text.txt", f"{directory}/text.model", PIECES)
  model = Model(str(directory / "model"), [
      "models/lm_tiny.gin", "meshes/cpu_1.gin", "data/sentencepiece.gin"], [
          f"TextFiles.glob = '{directory}/text.txt'",
          "TextFiles.held_out = 0.2",
          f"SentencePieceVocabulary.path = '{directory}/text.model'"])
  run(model, ONE_SLICE, "run.train_steps = 8")
  return model


def exported(model, mode, directory):
  """The path of what the program exports; and all that it has left there."""
  before = set(os.listdir(directory)) if os.path.exists(directory) else set()
  run(model, ONE_SLICE, f"run.mode = '{mode}'",
      f"run.export_path = '{directory}'", GREEDY)
  path, = set(os.listdir(directory)) - before
  return os.path.join(directory, path)


def test_sentencepiece(model, tmp_path):
  """Text in and text out; and what was there before is there afterwards."""
  (tmp_path / "mine").write_text("mine")
  path = exported(model, "export_infer", str(tmp_path))
  # Its export puts an end of document behind shorter ones.
  prompts = [prompt_of_full_length(model, start)
             for start in ("5", "é\u2581 ")]
  found = served(path, inputs=prompts)
  assert found["inputs"] == prompts
  assert found["outputs"] == continuations(model, ONE_SLICE, prompts, GREEDY)

  scoring = exported(model, "export_score", str(tmp_path))
  assert scoring != path
  texts = ["50 bottles of beer", "beer of bottles 50"]
  found = served(scoring, targets=texts)
  # And it fills up the batch.
  assert found["targets"] == [*texts, "", ""]
  assert max(found["scores"][:2]) < 0 and len(set(found["scores"][:2])) == 2
  assert os.path.exists(path)
  assert (tmp_path / "mine").read_text() == "mine"


def prompt_of_full_length(model, start):
  """The first text that begins so and has as many tokens as a sequence."""
  vocabulary = SentencePieceVocabulary(
      os.path.join(os.path.dirname(model.directory), "text.model"))
  for end in range(100):
    text = start + "0 bottles of beer on the wall, 29 bottles"[:end]
    if len(vocabulary.encode(text)) == LENGTH and text == text.strip():
      return text
  raise AssertionError("no text has this length")


@gin.configurable(module="tests")
class UpperCase(ByteVocabulary):
  """One that calls Python in the graph."""

  def encode_tf(self, s):
    return super().encode_tf(
        tf.numpy_function(bytes.upper, [s], tf.string, stateful=False))


@gin.configurable(module="tests")
class OnlyPython(mtf_vocabulary.Vocabulary):
  """One that has nothing for the graph."""

  vocab_size = 259


@pytest.mark.parametrize("vocabulary, said", [
    ("UpperCase", "run.vocabulary is a UpperCase, which .* calling Python"),
    ("OnlyPython", "run.vocabulary is a OnlyPython, which has no operations"),
])
def test_what_cannot_be_served_is_not_written(
    vocabulary, said, model, tmp_path):
  other = dataclasses.replace(model, bindings=[
      *model.bindings, f"run.vocabulary = @tests.{vocabulary}()"])
  with pytest.raises(SystemExit, match=said) as refused:
    run(other, ONE_SLICE, "run.mode = 'export_infer'",
        f"run.export_path = '{tmp_path}/exported'")
  assert "\n" not in str(refused.value)
  assert not list(tmp_path.iterdir())


def test_bytes_can_be_served():
  export.check_vocabularies((ByteVocabulary(), ByteVocabulary()))
  with pytest.raises(ValueError, match="UpperCase"):
    export.check_vocabularies((ByteVocabulary(), UpperCase()))
