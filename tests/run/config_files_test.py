"""What is wrong with a gin file is told with its name and the line."""

import sys
import types

from absl import flags
from absl.testing import flagsaver
import gin
import pytest

from mtf_moe.run import config_files
from mtf_moe.run import mistakes


def read(directory, *lines, files=(), modules=()):
  with flagsaver.flagsaver():
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(["program", "--model_dir=none"]
                  if "model_dir" in flags.FLAGS else ["program"])
    flags.FLAGS.gin_file = [str(directory / name) for name in files]
    flags.FLAGS.gin_param = list(lines) or None  # The flag's default.
    flags.FLAGS.module_import = list(modules)
    config_files.read()


def said(directory, *lines, **kwargs):
  with pytest.raises(SystemExit) as ended, mistakes.told("program"):
    read(directory, *lines, **kwargs)
  assert "\n" not in ended.value.code
  return ended.value.code.removeprefix("program: ")


@pytest.mark.parametrize("content, line", [
    ("batch_size = 4".encode("utf-16"), "{} is not text in UTF-8: 'utf-8' "),
    ("# Größe\n".encode("cp1252"), "{} is not text in UTF-8: 'utf-8' "),
    (b"batch_size\0 = 4", "{} is not text in UTF-8: it contains the "),
])
def test_a_file_that_is_no_text(tmp_path, content, line):
  (tmp_path / "my.gin").write_bytes(content)
  line = "the gin file " + line.format(tmp_path / "my.gin")
  assert said(tmp_path, files=["my.gin"]).startswith(line)
  # Also where another file has it.
  (tmp_path / "outer.gin").write_text(f"\ninclude '{tmp_path}/my.gin'\n")
  told = said(tmp_path, files=["outer.gin"])
  assert told.startswith(line)
  assert f"({tmp_path}/outer.gin, line 2: include " in told


def test_without_a_parameter(tmp_path):
  read(tmp_path)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_other_ends_of_lines(tmp_path, end):
  text = end.join(["run.mode = 'eval'", "# Mine", "run.train_steps = (", "3)"])
  (tmp_path / "my.gin").write_bytes(text.encode())
  read(tmp_path, files=["my.gin"])
  assert gin.query_parameter("run.train_steps") == 3


def test_names_that_t5_has_left_behind(tmp_path, monkeypatch):
  """As its own command does: some of its gin files still have them."""
  (tmp_path / "my.gin").write_text(
      "vocabularies.Vocabulary.extra_ids = 100\n"
      "run.eval_dataset_fn = @old_function\nrun.eval_dataset_fn = None\n")
  refused = "No configurable matching 'vocabularies.Vocabulary'"
  assert said(tmp_path, files=["my.gin"]).startswith(refused)
  gin.clear_config()
  t5 = types.ModuleType("t5.models.mesh_transformer")
  monkeypatch.setitem(sys.modules, "t5", types.ModuleType("t5"))
  monkeypatch.setitem(sys.modules, t5.__name__, t5)
  assert said(tmp_path, files=["my.gin"]).startswith(refused)
  gin.clear_config()
  t5.DEPRECATED_GIN_REFERENCES = ("vocabularies.Vocabulary", "old_function")
  read(tmp_path, "run.train_steps = 3", files=["my.gin"])
  assert gin.query_parameter("run.train_steps") == 3
  gin.clear_config()
  assert "matching 'Vocabulary'" in said(tmp_path, "Vocabulary.extra_ids = 100")
  gin.clear_config()
  assert "no_such_module" in said(tmp_path, "import no_such_module")


def test_a_file_that_includes_itself(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my.gin").write_text("include 'other.gin'\n")
  (tmp_path / "other.gin").write_text(f"include '{tmp_path}/my.gin'\n")
  assert said(tmp_path, files=["my.gin"]).startswith(
      f"the gin file {tmp_path}/my.gin includes itself: remove the `include`.")
  # The same file twice is no circle.
  (tmp_path / "other.gin").write_text("")
  read(tmp_path, files=["my.gin", "my.gin", "other.gin"])


def test_a_mark_of_the_byte_order_is_allowed(tmp_path):
  (tmp_path / "my.gin").write_bytes("run.mode = 'eval'".encode("utf-8-sig"))
  read(tmp_path, files=["my.gin"])


@pytest.mark.parametrize("text, line", [
    ("a = 1\nrun.mode 7\n", "{}, line 2, is no gin: Couldn't parse statement, "
     "expected ':' or '='. It says 'run.mode 7'."),
    ("a = [1,\n", "{} ends within brackets or quotes that it opens: it is no "
     "gin."),
    ("runn.mode = 1\n", "No configurable matching 'runn'. ({}, line 1: "
     "runn.mode = 1) Did you mean 'run'? "),
    ("run.mod = 1\n", "Configurable 'run' doesn't have a parameter named "
     "'mod'. ({}, line 1: run.mod = 1) Did you mean 'mode'?"),
    ("import no_such_module\n", "No module named 'no_such_module' ({}, line "
     "1: import no_such_module)"),
    ("include 'none.gin'\n", "the gin file none.gin does not exist ({}, line "
     "1: include 'none.gin'). Looked for it in /"),
])
def test_a_mistake_in_a_file(tmp_path, text, line):
  (tmp_path / "my.gin").write_text(text)
  assert said(tmp_path, files=["my.gin"]).startswith(
      line.format(tmp_path / "my.gin"))


@pytest.mark.parametrize("lines, line", [
    (["a = 1", "run.mode 7"], "--gin_param, line 2, is no gin: Couldn't "),
    (["run.mode = [1,"], "--gin_param ends within brackets or quotes "),
    (["run.optimizer = @Adam"], "No configurable matching reference '@Adam'. "
     "(--gin_param, line 1: run.optimizer = @Adam)"),
    (["run.train_steps = %steps"], "run.train_steps refers to %steps, and "
     "nothing sets that macro: give it a value, such as "
     "--gin_param='steps = ...'."),
    (["run.train_steps = [1, {'a': %steps}]"], "run.train_steps refers to "),
    (["run.train_steps = %a", "a = %a"], "%a refers to %a, so that it has no "),
    (["a = [1, %b]", "b = %a"], "%a refers to %b refers to %a, so that it has"),
    (["auto_train_steps.batch_size = @auto_train_steps()"],
     "@mesh_tensorflow.transformer.utils.auto_train_steps() refers to @mesh"),
    (["decode.beam_size = 4"], "Ambiguous selector 'decode', matches ['mesh_"),
    (["run.train_steps = %gin.REQUIRED"], "run.train_steps set to "
     "`%gin.REQUIRED` but not subsequently overridden."),
])
def test_a_mistake_in_a_parameter(tmp_path, lines, line):
  assert said(tmp_path, *lines).startswith(line)


def test_an_empty_name(tmp_path):
  (tmp_path / "my.gin").write_text("include ''\n")
  assert said(tmp_path, files=["my.gin"]) == (
      f"'' is the name of no gin file ({tmp_path}/my.gin, line 1: include ''): "
      "give one, such as --gin_file=runs/tiny.gin, or leave the flag out.")


def test_a_directory(tmp_path):
  (tmp_path / "my.gin").mkdir()
  assert said(tmp_path, files=["my.gin"]) == (
      f"the gin file {tmp_path}/my.gin is a directory.")


@pytest.mark.parametrize("text, why", [
    (None, "ModuleNotFoundError: No module named 'my_module'"),
    ("x = 1\nx = y\n", "NameError: name 'y' is not defined"),
    ("x = 1 +\n", "SyntaxError: invalid syntax"),
])
def test_modules(tmp_path, monkeypatch, text, why):
  monkeypatch.syspath_prepend(tmp_path)
  if text:
    (tmp_path / "my_module.py").write_text(text)
  assert said(tmp_path, modules=["my_module"]).startswith(
      f"--module_import=my_module cannot be imported: {why}")


def test_a_module_that_a_file_imports(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "failing.py").write_text("x = 1\nx = y\n")
  (tmp_path / "my.gin").write_text("import failing\n")
  told = said(tmp_path, files=["my.gin"])
  assert told.startswith("gin imports what fails: NameError: ")
  assert f"({tmp_path}/failing.py, line 2)" in told
