"""What a mode lacks is said before anything is built."""

import os
import re

import gin
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import export
from mtf_moe.train import run_mode
from tests import gin_config

# Those that work with what was trained.
OTHERS = [mode for mode in run_mode.MODES if mode != "train"]
SCORED = {"inputs": "None", "targets": "['abc', 'four']",
          "score_postprocess_fn": "@save_scores"}
PROMPTS = "continue_prompts.prompts = ['abc', 'four']"


def check(directory, *bindings, files=()):
  gin_config.parse(
      ["meshes/cpu_1.gin", "data/bytes.gin", *files],
      ["run.perplexity_eval_steps = 1", *bindings])
  run_mode.check(str(directory))


@pytest.fixture
def trained(tmp_path):
  """A directory with a checkpoint."""
  with tf.Graph().as_default(), tf.Session() as session:
    variable = tf.get_variable("v", [])
    session.run(variable.initializer)
    tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), 7)
  return tmp_path


def test_training_needs_nothing(tmp_path):
  check(tmp_path)


@pytest.mark.parametrize("mode", OTHERS)
@pytest.mark.parametrize("step", [None, -1, 7, "'all'", [5, 7]])
def test_other_modes_need_a_checkpoint(mode, step, tmp_path, trained):
  name = "export" if "export" in mode else "eval"
  lines = [f"run.mode = '{mode}'", f"run.{name}_checkpoint_step = {step}",
           f"run.export_path = '{tmp_path}/exported'",
           *[f"score_from_strings.{k} = {v}" for k, v in SCORED.items()]]
  check(trained, *lines)
  empty = tmp_path / "empty"
  with pytest.raises(ValueError, match=(
      f"--model_dir={empty} holds no checkpoint, and run.mode = '{mode}'")):
    check(empty, *lines)


def test_the_checkpoints_of_another_directory(tmp_path):
  check(tmp_path, "run.mode = 'infer'",
        "infer_model.checkpoint_paths = ['elsewhere/model.ckpt-7']")


@pytest.mark.parametrize("lines, said", [
    (["run.mode = 'evaluate'"], r"run\.mode = 'evaluate' is not known.*"
     "'train', 'perplexity_eval', 'infer', 'eval', 'score_eval'"),
    (["run.mode = 'infer'", "run.sequence_length = None"],
     "run.sequence_length = None, and run.mode = 'infer' needs one"),
])
def test_mistakes(lines, said, trained):
  with pytest.raises(ValueError, match=said):
    check(trained, *lines)


def test_through_macros(trained):
  lines = ["run.mode = %one", "one = %two", "two = 'export'",
           "run.export_path = %path", f"path = '{trained}/exported'",
           "run.sequence_length = %length", "length = 16"]
  check(trained, *lines)
  assert run_mode.get() == "export"
  with pytest.raises(ValueError, match=r"run.export_path = None says"):
    check(trained, *lines, "path = None")
  with pytest.raises(ValueError, match=r"run.mode = 'x' is not known"):
    check(trained, *lines, "two = 'x'")
  with pytest.raises(ValueError, match=r"run.sequence_length = None, and run"):
    check(trained, *lines, "length = None")


def test_training_through_macros(tmp_path):
  lines = ["run.train_dataset_fn = %data", "run.dataset_split = %split",
           "split = 'train'", "data = @mtf_moe.text_dataset"]
  check(tmp_path, *lines)
  with pytest.raises(ValueError, match=r"run.train_dataset_fn is not set"):
    check(tmp_path, *lines, "data = None")
  with pytest.raises(ValueError, match=r"run.dataset_split = 'x' is not for"):
    check(tmp_path, *lines, "split = 'x'")


def test_evaluation_through_macros(trained):
  lines = ["run.mode = 'perplexity_eval'", "evaluate.with_dropless = True",
           "run.eval_checkpoint_step = %step", "step = -1"]
  check(trained, *lines)
  with pytest.raises(ValueError, match=r"waits for new checkpoints"):
    check(trained, *lines, "step = None")
  with pytest.raises(ValueError, match=r"held_out_steps.batch_size = 3, a"):
    check(trained, *lines, "run.perplexity_eval_steps = %steps",
          "steps = @mtf_moe.held_out_steps()",
          "held_out_steps.batch_size = 3", "run.batch_size = 4")


@pytest.mark.parametrize("path, said", [
    ("''", r"run\.export_path = '' says nowhere to export to: set it"),
    ("None", "run.export_path = None says nowhere"),
    ("7", "run.export_path = 7 says nowhere"),
    ("'{trained}/checkpoint'", "cannot be made or written in .*/checkpoint:"),
    ("'{trained}/checkpoint/a/b'", "cannot be made or .* in .*/checkpoint:"),
    ("'/proc/x/y'", "export_path = '/proc/x/y' cannot be .* in /proc: "),
    ("'exported[3]'", r"'run\.export_path=exported\[3\]' has '\['"),
])
@pytest.mark.parametrize("mode", export.MODES)
def test_where_to_export_to(mode, path, said, trained):
  path = path.format(trained=trained)
  with pytest.raises(ValueError, match=said):
    check(trained, f"run.mode = '{mode}'", f"run.export_path = {path}")
  with pytest.raises(ValueError, match=r"run\.export_path = None says nowhere"):
    check(trained, f"run.mode = '{mode}'")
  assert sorted(os.listdir(trained)) == [
      "checkpoint", "model.ckpt-7.data-00000-of-00001", "model.ckpt-7.index",
      "model.ckpt-7.meta"]


def test_exporting_to_ones_home(trained, monkeypatch):
  monkeypatch.setenv("HOME", str(trained))
  check(trained, "run.mode = 'export'", "run.export_path = '~/exported/'")
  assert gin.query_parameter("run.export_path") == f"{trained}/exported"


def test_checkpoints_whose_names_are_patterns(trained):
  with pytest.raises(ValueError, match=r"'infer_model\..*=a[*]/"):
    check(trained, "run.mode = 'infer'",
          "infer_model.checkpoint_paths = ['a*/model.ckpt-7']")


@pytest.mark.parametrize("lines, said", [
    ([], r"continue_prompts\.prompts = None has no prompt"),
    (["continue_prompts.prompts = []"], r"prompts = \[\] has no prompt"),
    (["continue_prompts.prompts = 'none.txt'"], "'none.txt' is no file"),
    (["continue_prompts.prompts = '/'"], "prompts = '/' has no prompt"),
    *((["continue_prompts.prompts = " + value], "must be a list of strings, or")
      for value in ("3", "[3]", "[None]", "['a', ['b']]", "[b'a']", "{'a': 1}",
                    "True", "b'a'")),
    ([PROMPTS, "sequence_length = 3"],
     r"number 2, 'four', has 4 tokens, .*sequence_length is 3\..* 4 or more"),
    ([PROMPTS, "run.sequence_length = {'inputs': 3, 'targets': 9}"],
     r"number 2, .*run\.sequence_length is 3"),
    # An encoder's inputs end with an end of document.
    ([PROMPTS, "sequence_length = 4", "run.model_type = 'bitransformer'"],
     "number 2, 'four', has 5 tokens"),
])
def test_prompts_that_do_not_fit(lines, said, trained):
  lines = ["run.model_type = 'lm'", *lines]
  with pytest.raises(ValueError, match=said):
    check(trained, *lines, files=["runs/sample.gin"])


def test_prompts_that_are_no_text(trained):
  (trained / "prompts.txt").write_bytes("Größe".encode("cp1252"))
  with pytest.raises(ValueError, match=r"prompts\.txt' is no text in UTF-8"):
    check(trained, f"continue_prompts.prompts = '{trained}/prompts.txt'",
          files=["runs/sample.gin"])


def test_prompts_that_fit(trained):
  check(trained, PROMPTS, "sequence_length = 4", "run.model_type = 'lm'",
        files=["runs/sample.gin"])
  (trained / "prompts.txt").write_text("four\nabc \n")
  check(trained, f"continue_prompts.prompts = '{trained}/prompts.txt'",
        "sequence_length = 4", "run.model_type = 'lm'",
        files=["runs/sample.gin"])


@pytest.mark.parametrize("name, mode", [
    ("eval", "infer"), ("eval", "perplexity_eval"), ("export", "export")])
def test_steps_that_are_not_there(name, mode, trained):
  parameter = f"run.{name}_checkpoint_step"
  for given, missing in [("99", "99"), ("8", "8"), ("[7, 5, 3]", "5, 3")]:
    if mode == "export" and "," in given:
      continue  # It reads one.
    gin_config.parse(
        bindings=[f"run.mode = '{mode}'", f"{parameter} = {given}"])
    with pytest.raises(ValueError, match=re.escape(
        f"{parameter} = {given}: --model_dir={trained} holds no checkpoint of "
        f"step {missing} that can be used. It has 7: choose")):
      run_mode.checkpoints_read(str(trained))
  gin_config.parse(bindings=[f"run.mode = '{mode}'", f"{parameter} = [7]"])
  assert run_mode.checkpoints_read(str(trained)) == [f"{trained}/model.ckpt-7"]


def test_exporting_step_0(trained):
  gin_config.parse(
      bindings=["run.mode = 'export'", "run.export_checkpoint_step = 0"])
  with pytest.raises(ValueError, match=r"step = 0 exports the newest.*\[0\]"):
    run_mode.checkpoints_read(str(trained))


def check_scored(directory, *lines, **given):
  check(directory, "run.mode = 'score_from_strings'", "run.model_type = 'lm'",
        "sequence_length = 7", *lines,
        *[f"score_from_strings.{name} = {value}"
          for name, value in {**SCORED, **given}.items() if value])


def test_texts_to_score(trained):
  check_scored(trained)
  check_scored(trained, inputs="['abc']")
  check_scored(trained, inputs="['abc', 'a']", targets="['four']")
  (trained / "texts").write_text("one\ntwo\n")
  check_scored(trained, targets=f"'{trained}/texts'")
  check_scored(trained, f"save_scores.scores_filename = '{trained}/scores'")


@pytest.mark.parametrize("given, said", [
    ({"targets": ""}, "targets is not set"),
    ({"score_postprocess_fn": ""}, "fn is not set: set it, to @save_scores"),
    ({"targets": "[]"}, r"targets = \[\]: give a list of strings"),
    ({"targets": "[3]"}, r"targets = \[3\]: give a list of strings"),
    ({"targets": "'none.txt'"}, "targets = 'none.txt' is no file"),
    ({"inputs": "3"}, "inputs = 3: give a list"),
    ({"inputs": "['a', 'b', 'c']"}, "inputs has 3 texts, .*targets 2"),
    ({"targets": "['abc', 'eight ch']"}, "targets: number 2 has 8 tokens.* 7"),
    ({"inputs": "['a', 'bcde']"}, "targets: number 2 has 8 tokens.* 8 or more"),
    ({"inputs": "['a', 'abcdefg']", "lines": "run.model_type = 'aligned'"},
     "inputs: number 2 has 8 tokens"),
    ({"lines": "save_scores.scores_filename = 'no/such/file'"},
     "scores_filename = 'no/such/file' cannot be written in no/such, which"),
])
def test_texts_that_cannot_be_scored(given, said, trained):
  lines = [given["lines"]] if "lines" in given else []
  given = {name: value for name, value in given.items() if name != "lines"}
  with pytest.raises(ValueError, match=said):
    check_scored(trained, *lines, **given)


@pytest.mark.parametrize("filename, said", [
    ("''", "is no path of a file"), ("'.'", "is no path of a file"),
    ("3", "is no path of a file"),
    ("'no/such/file'", "cannot be written in no/such, which is no directory")])
def test_where_continuations_cannot_be_written(filename, said, trained):
  with pytest.raises(ValueError, match=(
      rf"continue_prompts\.output_filename = {filename} {said}")):
    check(trained, PROMPTS, "sequence_length = 9", "run.model_type = 'lm'",
          f"continue_prompts.output_filename = {filename}",
          files=["runs/sample.gin"])


@pytest.mark.parametrize("suffix", ["'/../../x'", "'a/b'"])
def test_evaluations_outside_of_the_model_directory(suffix, trained):
  with pytest.raises(ValueError, match=(
      f"run.eval_dir_suffix = {suffix} is no end of a directory's name")):
    check(trained, "run.mode = 'perplexity_eval'",
          f"run.eval_dir_suffix = {suffix}")


@pytest.mark.parametrize("name, mode, given, said", [
    ("eval", "score_from_strings", "None", "None waits for new checkpoints"),
    ("eval", "score_from_dataset", "'all'", "'all', and .* reads one checkpoi"),
    ("export", "export_infer", "[7, 8]", r"\[7, 8\], and .* reads one")])
def test_modes_that_read_one_checkpoint(name, mode, given, said, trained):
  parameter = f"run.{name}_checkpoint_step"
  gin_config.parse(bindings=[f"run.mode = '{mode}'", f"{parameter} = {given}"])
  with pytest.raises(ValueError, match=f"{parameter} = {said}"):
    run_mode.checkpoints_read(str(trained))


def test_steps_and_suffixes_of_macros(trained):
  macros = ["step = 7", "run.eval_checkpoint_step = %step", "end = 'again'",
            "run.eval_dir_suffix = %end"]
  check(trained, "run.mode = 'perplexity_eval'", *macros)
  assert run_mode.checkpoints_read(str(trained)) == [f"{trained}/model.ckpt-7"]
