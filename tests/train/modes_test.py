"""Every mode of mesh_tensorflow's program, end to end, on several meshes.

A language model learns text of four words in random order, and an
encoder-decoder the number of each word, so what each mode should say is known
beforehand. On every mesh it has to say the same, from the same checkpoint.
"""

import dataclasses
import glob
import json
import math
import shutil
import subprocess
import sys

import gin
from mesh_tensorflow.transformer import dataset as mtf_dataset
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from tests.train import small_models
from tests.train.small_models import GREEDY
from tests.train.small_models import LENGTH
from tests.train.small_models import ONE_SLICE
from tests.train.small_models import STEPS
from tests.train.small_models import WORDS
from tests.train.small_models import Model
from tests.train.small_models import continuations
from tests.train.small_models import metrics
from tests.train.small_models import run

MESHES = [ONE_SLICE, (2, 2)]

NUMBERS = ["1", "2", "3", "4"]
# Prompts and how their last word ends. Of full length: mesh_tensorflow's export
# puts an end of document behind a shorter one, its decoding does not.
ENDINGS = {"abcd efgh ijkl m": "nop", "bcd mnop abcd ef": "gh",
           "cd ijkl ijkl abc": "d", "d efgh abcd ijkl": ""}

BEAM_SEARCH = "Bitransformer.decode.beam_size = 2"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
  return small_models.train_language_model(
      tmp_path_factory.mktemp("language_model"))


def _ids(inputs, targets, vocabulary, sequence_length):
  """Texts as features of an encoder-decoder."""
  return {
      feature: utils.encode_inputs(
          texts, vocabulary, "bitransformer", 1, sequence_length[feature])
      for feature, texts in [("inputs", inputs), ("targets", targets)]}


@gin.configurable(module="tests")
def numbered_words(sequence_length, vocabulary, dataset_split):
  """A training set of pairs: numbers and words."""
  del dataset_split
  ids = _ids(NUMBERS, WORDS, vocabulary, sequence_length)
  return tf.data.Dataset.from_tensor_slices({
      **ids, **{f"{feature}_segmentation": np.minimum(array, 1)
                for feature, array in ids.items()}})


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
  """A Model that has learnt the number of each word, trained on one slice."""
  directory = tmp_path_factory.mktemp("encoder_decoder")
  model = Model(f"{directory}/model", [
      "models/bitransformer_small.gin", "meshes/cpu_1.gin", "data/bytes.gin"], [
          "run.train_dataset_fn = @tests.numbered_words",
          "run.perplexity_eval_steps = None"])  # There is no text to count.
  run(model, ONE_SLICE, f"run.train_steps = {STEPS}")
  return model


def variables(checkpoint):
  """The values of all variables, by name."""
  reader = tf.train.load_checkpoint(checkpoint)
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}


def entropy_of_windows():
  """Bits per byte of the words' text that no model can do without.

  A window of LENGTH bytes is predicted from its own bytes only. The first is a
  space in one of 5 cases, each of the 16 letters in one of 20. After that, only
  the first letter of a word is not certain: one of 4, after one byte in 5.
  """
  first = math.log2(5) / 5 + 4 / 5 * math.log2(20)
  other = math.log2(4) / 5
  return (first + (LENGTH - 1) * other) / LENGTH


def test_train(language_model):
  """From one checkpoint, training comes to the same weights on every mesh."""
  before = variables(f"{language_model.directory}/model.ckpt-{STEPS}")
  after = {}
  for mesh in MESHES:
    directory = "{}_{}x{}".format(language_model.directory, *mesh)
    shutil.copytree(language_model.directory, directory)
    model = dataclasses.replace(language_model, directory=directory)
    printed = run(model, mesh, f"run.train_steps = {STEPS + 5}")
    assert f"resuming at step {STEPS}" in printed
    after[mesh] = variables(f"{directory}/model.ckpt-{STEPS + 5}")
    assert after[mesh].keys() == before.keys()
  for name, expected in after[ONE_SLICE].items():
    change = np.abs(expected - before[name]).max()
    assert change > 0
    # The optimizer's averages depend on the number of the step as well, which
    # mesh_tensorflow increases before or after they read it, as it happens.
    for mesh in MESHES[1:] if "_slot_" not in name else []:
      # Rounding makes up to 2e-5 of the change. A backward pass that reads
      # weights after their update is off by 1e-2 and more.
      np.testing.assert_allclose(
          after[mesh][name], expected, rtol=0, atol=1e-3 * change,
          err_msg=f"{name} on {mesh}")


def test_perplexity_eval(language_model):
  found = {}
  for mesh in MESHES:
    suffix = "{}x{}".format(*mesh)
    printed = run(
        language_model, mesh, f"run.eval_dir_suffix = '{suffix}'",
        files=["runs/perplexity.gin"])
    directory, = glob.glob(f"{language_model.directory}/eval_*_{suffix}")
    found[mesh] = metrics(directory)
    bits = float(printed.rpartition("held-out bits per byte: ")[2])
    # The held-out text is 200 words, on which the share of each is not exact.
    assert 0.98 < bits / entropy_of_windows() < 1.15
  for mesh in MESHES:
    # Sums over the slices of a mesh add up in another order.
    assert found[mesh] == pytest.approx(found[ONE_SLICE], rel=1e-5)
  assert found[ONE_SLICE]["num_eval_tokens"] == 1000 + 1  # And the end.


def test_infer_greedy(language_model):
  texts = {mesh: continuations(language_model, mesh, list(ENDINGS), GREEDY)
           for mesh in MESHES}
  assert [text.split(" ")[0] for text in texts[ONE_SLICE]] == list(
      ENDINGS.values())
  for mesh in MESHES[1:]:
    assert texts[mesh] == texts[ONE_SLICE]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_infer_samples(mesh, language_model):
  """Draws words, one for each copy of a prompt, and spells them right."""
  # What the model prefers, and how rarely it misspells, is its training's luck;
  # of some 80 words drawn, all the same or five misspelt are no luck any more.
  texts = continuations(
      language_model, mesh, ["ab"] * 16,
      "sample_autoregressive.temperature = 0.25")
  assert len(set(texts)) > 1
  words = [word for text in texts for word in f"ab{text}".split(" ")[:-1]]
  assert len(words) > 4 * 16
  assert sum(word not in WORDS for word in words) < 5


def test_language_model_with_beams(language_model):
  texts = {
      mesh: continuations(
          language_model, mesh, list(ENDINGS), file="runs/beam.gin")
      for mesh in MESHES}
  assert [text.split(" ")[0] for text in texts[ONE_SLICE]] == list(
      ENDINGS.values())
  for mesh in MESHES[1:]:
    assert texts[mesh] == texts[ONE_SLICE]
  for text, prompt in zip(texts[ONE_SLICE], ENDINGS):
    *words, cut_off = f"{prompt}{text}".split(" ")
    assert set(words[1:]) <= set(WORDS)
    assert any(word.startswith(cut_off) for word in WORDS)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_infer_with_beams(mesh, encoder_decoder):
  assert continuations(
      encoder_decoder, mesh, NUMBERS, BEAM_SEARCH) == WORDS


@gin.configurable(module="tests")
def unfinished_words(sequence_length, vocabulary, dataset_split):
  """A list of evaluation sets: how the last words of the prompts end."""
  del dataset_split
  endings = list(ENDINGS.values())

  def dataset(sequence_length=sequence_length):
    return tf.data.Dataset.from_tensor_slices({
        "inputs": utils.encode_inputs(
            list(ENDINGS), vocabulary, "lm", 1, sequence_length["inputs"]),
        "targets": utils.encode_inputs(
            endings, vocabulary, "lm", 1, sequence_length["targets"]),
        "targets_pretokenized": endings})

  def first_word(text, **unused_kwargs):
    return text.split(" ")[0]

  def accuracy(targets, predictions):
    return {"correct": np.mean(np.equal(targets, predictions))}

  return [mtf_dataset.EvalDataset("words", dataset, first_word, [accuracy])]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eval(mesh, language_model, tmp_path):
  run(language_model, mesh, "run.mode = 'eval'",
      "run.eval_dataset_fn = @tests.unfinished_words",
      f"run.eval_summary_dir = '{tmp_path}'")
  predictions = (tmp_path / f"words_{STEPS}_predictions").read_text()
  assert predictions.split("\n")[:-1] == list(ENDINGS.values())
  assert metrics(tmp_path) == {"eval/words/correct": 1.0}


def test_score_from_strings(encoder_decoder):
  """A number with each word: nearly certain, or all but impossible."""
  scores = {}
  for mesh in MESHES:
    filename = "{}/{}x{}".format(encoder_decoder.directory, *mesh)
    run(encoder_decoder, mesh, "run.mode = 'score_from_strings'",
        f"score_from_strings.inputs = {NUMBERS}",
        f"score_from_strings.targets = {WORDS * len(NUMBERS)}",
        "score_from_strings.score_postprocess_fn = @save_scores",
        f"save_scores.scores_filename = '{filename}'")
    scores[mesh] = np.loadtxt(f"{filename}.scores").reshape(4, 4)
    with open(f"{filename}.targets") as f:
      assert f.read().split("\n")[:-1] == WORDS * len(NUMBERS)
  right = np.eye(4, dtype=bool)
  assert scores[ONE_SLICE][right].min() > math.log(0.5)
  assert scores[ONE_SLICE][~right].max() < math.log(0.01)
  for mesh in MESHES[1:]:
    # Written with six digits; sums of five logarithms of up to 20.
    np.testing.assert_allclose(
        scores[mesh], scores[ONE_SLICE], rtol=2e-5, atol=1e-5)


@gin.configurable(module="tests")
def words_to_score(sequence_length, vocabulary, dataset_split):
  """A list of evaluation sets: the words of all numbers, and a wrong one."""
  del dataset_split
  numbers, words = [*NUMBERS, "1"], [*WORDS, WORDS[1]]

  def dataset(sequence_length=sequence_length):
    return tf.data.Dataset.from_tensor_slices({
        **_ids(numbers, words, vocabulary, sequence_length),
        "targets_pretokenized": words})

  def least(targets, scores):
    assert targets == words
    return {"right": min(scores[:4]), "wrong": scores[4]}

  return [mtf_dataset.EvalDataset(
      "words", dataset, lambda scored, **unused: scored, [least])]


@pytest.mark.parametrize("bindings", [
    [], ["save_scores.save_example_text = False"]])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_score_eval(mesh, bindings, encoder_decoder, tmp_path):
  run(encoder_decoder, mesh, "run.mode = 'score_eval'",
      "run.eval_dataset_fn = @tests.words_to_score", *bindings,
      f"run.eval_summary_dir = '{tmp_path}'")
  found = metrics(tmp_path)
  assert found["eval/words/right"] > math.log(0.5)
  assert found["eval/words/wrong"] < math.log(0.01)


# Where only TensorFlow is known.
SERVE = """
import json, sys
import tensorflow as tf
answers = []
for path, prompts in json.load(sys.stdin):
  model = tf.saved_model.load(path).signatures["serving_default"]
  outputs = model(inputs=tf.constant(prompts))["outputs"].numpy()
  answers.append([text.decode() for text in outputs])
assert not {"mesh_tensorflow", "mtf_moe"} & set(sys.modules)
print(json.dumps(answers))
"""


def served(requests):
  """What exported models answer in a process of their own.

  Args:
    requests: pairs of the path of a SavedModel and prompts.

  Returns:
    a list of lists of strings
  """
  result = subprocess.run(
      [sys.executable, "-c", SERVE], input=json.dumps(requests), check=True,
      stdout=subprocess.PIPE, text=True, cwd=requests[0][0])
  return json.loads(result.stdout)


def test_export(language_model, encoder_decoder, tmp_path):
  """What was exported says the same, and needs no mesh_tensorflow for it."""
  def export(model, mesh, *bindings, files=()):
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    run(model, mesh, "run.mode = 'export_infer'",
        f"run.export_path = '{directory}'", *bindings, files=files)
    path, = directory.iterdir()  # Named by the time.
    return str(path)

  prompts = list(ENDINGS)
  numbered, with_beams, *greedy = served([
      (export(encoder_decoder, ONE_SLICE, BEAM_SEARCH), NUMBERS[:2]),
      (export(language_model, (2, 2), files=["runs/beam.gin"]), prompts),
      *[(export(language_model, mesh, GREEDY), prompts) for mesh in MESHES]])
  assert numbered == WORDS[:2]
  assert with_beams == continuations(
      language_model, ONE_SLICE, prompts, file="runs/beam.gin")
  expected = continuations(language_model, ONE_SLICE, prompts, GREEDY)
  assert greedy == [expected] * len(MESHES)
