"""Other people's programs, run by `python -m mtf_moe.run`."""

import glob
import importlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator
from tensorflow_estimator.python.estimator import estimator as estimator_lib

from mtf_moe.run import __main__ as launcher
from mtf_moe.run import recording
from tests.train import program

# What a program sees of how it was started.
_TELL = """
    import json
    import sys
    import neighbour
    told = [__name__, sys.argv, sys.modules["__main__"].__dict__ is globals(),
            neighbour.HERE]
    with open({told!r}, "w") as f:
      json.dump(told, f)
    sys.exit(3)
    """


@pytest.fixture
def directory(tmp_path, monkeypatch):
  """A current directory with a module, from which `python -m` was called."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path[1:]])
  importlib.invalidate_caches()
  _write(tmp_path / "neighbour.py", "HERE = True")
  yield tmp_path
  sys.modules.pop("neighbour", None)


def _write(path, text, **names):
  path.parent.mkdir(exist_ok=True, parents=True)
  path.write_text(textwrap.dedent(text).format(**names) if names
                  else textwrap.dedent(text))


def _status(*arguments):
  with pytest.raises(SystemExit) as ended:
    launcher.main([*map(str, arguments)])
  return ended.value.code


# Which program, and what it sees.


def test_a_script_and_what_is_beside_it(directory):
  told = directory / "told.json"
  script = directory / "elsewhere" / "program.py"
  _write(script, _TELL, told=str(told))
  (directory / "neighbour.py").rename(script.parent / "neighbour.py")
  path_before = [*sys.path]
  assert _status(script, "--flag", "x y") == 3
  assert json.loads(told.read_text()) == [
      "__main__", [str(script), "--flag", "x y"], True, True]
  assert sys.path == path_before


def test_a_module(directory):
  told = directory / "told.json"
  _write(directory / "one" / "two.py", _TELL, told=str(told))
  assert _status("one.two", "--help") == 3
  assert json.loads(told.read_text()) == [
      "__main__", [str(directory / "one" / "two.py"), "--help"], True, True]


def test_a_package(directory):
  told = directory / "told.json"
  _write(directory / "three" / "__main__.py", _TELL, told=str(told))
  _write(directory / "three" / "__init__.py", "")
  assert _status("three") == 3
  assert json.loads(told.read_text()) == [
      "__main__", [str(directory / "three" / "__main__.py")], True, True]


def test_an_installed_command(directory):
  told = directory / "told.json"
  _write(directory / "four.py", """
      import json
      import sys
      import neighbour
      def start():
        with open({told!r}, "w") as f:
          json.dump([__name__, sys.argv, sys.modules["__main__"].__doc__], f)
        return 3
      """, told=str(told))
  metadata = directory / "four-1.0.dist-info"
  _write(metadata / "METADATA", "Metadata-Version: 2.1\nName: four\n")
  _write(metadata / "entry_points.txt",
         "[console_scripts]\nfour_five = four:start\n")
  main_before = sys.modules["__main__"]
  assert _status("four_five", "-x") == 3
  assert json.loads(told.read_text()) == ["four", ["four_five", "-x"], None]
  assert sys.modules["__main__"] is main_before


def test_a_script_on_the_path(directory, monkeypatch):
  told = directory / "told.json"
  script = directory / "bin" / "six"
  _write(script, _TELL, told=str(told))
  script.write_text("#!/usr/bin/env python3\n" + script.read_text())
  script.chmod(0o755)
  (directory / "neighbour.py").rename(script.parent / "neighbour.py")
  monkeypatch.setenv("PATH", str(script.parent))
  assert _status("six") == 3
  assert json.loads(told.read_text())[1] == [str(script)]


def test_absl_finds_the_main_of_a_program(directory):
  _write(directory / "seven.py", """
      from absl import app
      def main(argv):
        raise SystemExit(len(argv))
      if __name__ == "__main__":
        app.run(main)
      """)
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.run", "seven", "--", "1", "2"],
      cwd=directory, env={**os.environ, "PYTHONPATH": program.ROOT},
      capture_output=True, text=True, check=False)
  assert result.returncode == 3, result.stderr


def test_a_program_that_only_returns(directory):
  _write(directory / "eight.py", "")
  assert launcher.main(["eight"]) is None
  assert launcher.main(["./eight.py"]) is None


# What is no program.


def _line(*arguments):
  """What Python writes to standard error, with the status 1."""
  line, = _status(*arguments).splitlines()
  return line


@pytest.mark.parametrize("arguments, message", [
    ([], "no program given"),
    (["--model_dir=x"], "--model_dir=x is no program"),
    (["no_such_module"], "no_such_module is no module"),
    (["mesh_tensorflow.no.such"], "mesh_tensorflow.no.such is no module"),
    (["no/such/file.py"], "no/such/file.py is no module"),
    (["no_file.py"], "no_file.py is no module"),
    (["mesh_tensorflow"], "mesh_tensorflow is no module that can be run"),
    (["ls"], "ls is no module"),  # On the path, and not Python.
])
def test_mistakes_are_told_in_a_line(arguments, message):
  assert _line(*arguments).startswith(f"mtf_moe.run: {message}")


def test_files_that_python_does_not_run(directory):
  (directory / "empty").mkdir()
  _write(directory / "program", "#!/bin/sh\necho 1\n")
  for name in ["./empty", "./program"]:
    assert _line(name).startswith(f"mtf_moe.run: {name} is no module")


def test_what_a_program_lacks_is_its_own_error(directory):
  _write(directory / "nine" / "__init__.py", "import no_such_module")
  _write(directory / "nine" / "main.py", "")
  with pytest.raises(ModuleNotFoundError, match="no_such_module"):
    launcher.main(["nine.main"])


def test_help(capsys):
  launcher.main(["--help"])
  assert "python -m mtf_moe.run t5_mesh_transformer" in capsys.readouterr().out


# What it changes.


def _model_fn(features, labels, mode):
  """A model whose records are the number of the step."""
  del features, labels
  assert tf.resource_variables_enabled() == (
      mode == tf_estimator.ModeKeys.TRAIN)
  step = tf.train.get_global_step()
  weight = tf.get_variable("weight", [], initializer=tf.zeros_initializer())
  with tf.control_dependencies([tf.assign_add(weight, 1.0)]):
    train_op = tf.assign_add(step, 1).op
  tf.add_to_collection(
      mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY, ("moe/x", tf.constant(0.5)))
  return tf_estimator.EstimatorSpec(
      mode, loss=tf.constant(1.0), train_op=train_op,
      predictions=tf.constant([1.0]))


def _features():
  return tf.data.Dataset.from_tensors(1.0).repeat(5)


def test_estimators_record_the_step_and_have_resource_variables(tmp_path):
  before = estimator_lib.Estimator.train
  estimator = tf_estimator.Estimator(
      _model_fn, str(tmp_path),
      tf_estimator.RunConfig(save_summary_steps=2))
  with recording.every_estimator():
    estimator.train(_features, None, 5)  # Hooks and steps, by position.
    estimator.evaluate(_features, steps=1)
    next(iter(estimator.predict(_features)))
  assert estimator_lib.Estimator.train is before
  assert not tf.resource_variables_enabled()
  file, = glob.glob(f"{tmp_path}/events.*")
  assert [(event.step, value.simple_value)
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value if value.tag == "moe/x"] == [
              (1, 0.5), (3, 0.5), (5, 0.5)]


def test_the_program_of_mesh_tensorflow(tmp_path):
  """It trains with a mixture that only gin knows of, and records it."""
  program.write_text(tmp_path)
  layers = tmp_path / "layers.gin"
  layers.write_text("transformer.make_layer_stack.layers = [@mtf_moe.MoE2D]\n")
  files = [layers, "runs/tiny.gin", "meshes/cpu_2x2.gin", layers]
  bindings = [
      f"TextFiles.glob = '{tmp_path}/text.txt'", *program.SETTINGS[:-1],
      "run.train_steps = 3"]
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.run", "mesh_tensorflow.transformer.main",
       f"--model_dir={tmp_path}/model",
       f"--gin_location_prefix={pathlib.Path(program.ROOT) / 'configs'}",
       *[f"--gin_file={file}" for file in files],
       *[f"--gin_param={binding}" for binding in bindings]],
      env={**os.environ, "PYTHONPATH": program.ROOT},
      capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr[-5000:]
  assert "Saving checkpoints for 3" in result.stderr  # All is logged.
  assert "Issue encountered when serializing" not in result.stderr
  assert program.newest_step(tmp_path / "model") == 3
  tags = {(event.step, value.tag)
          for file in glob.glob(f"{tmp_path}/model/events.*")
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value}
  assert (1, "moe/transformer/block_000/layer_000/MoE2D/outer/tokens") in tags
