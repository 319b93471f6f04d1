"""What cannot be done is one line, and the source is only read."""

import os
import re

import pytest

from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options
from tests import forked
from tests.report import event_files
from tests.surgery.checkpoints import DENSE
from tests.surgery.checkpoints import MOE
from tests.surgery.checkpoints import PLACE
from tests.surgery.checkpoints import configured
from tests.surgery.checkpoints import experts
from tests.surgery.checkpoints import save


def state(directory):
  """The bytes and times of everything in a directory, and of itself."""
  paths = [directory, *sorted(directory.rglob("*"))]
  return {path: (path.stat().st_mtime_ns, path.stat().st_size,
                 path.read_bytes() if path.is_file() else None)
          for path in paths}


@pytest.fixture
def four(tmp_path):
  """A directory with a checkpoint of four experts, recorded."""
  save(experts(4), tmp_path / "four")
  event_files.write(tmp_path / "four", {7: {
      f"moe/{PLACE}/MoE/level_1/load/expert_{number}": 0.25
      for number in range(4)}})
  return tmp_path / "four"


@pytest.mark.parametrize("how", ["mean", "weighted", "busiest", "first"])
def test_the_source_is_only_read(how, four, tmp_path):
  before = state(four)
  found = operation.prepare(
      str(four), experts(2), Options(fewer=how, noise=0.1))
  found.table()
  found.write(str(tmp_path / "new"))
  with pytest.raises(ValueError, match=re.escape(
      f"--model_dir={four} is not empty: choose a new directory")):
    found.write(str(four))
  assert state(four) == before


def refused(source, model, match):
  with pytest.raises(ValueError, match=match) as error:
    operation.prepare(str(source), model, Options())
  assert "\n" not in str(error.value)


def test_a_directory_without_a_checkpoint(tmp_path):
  (tmp_path / "note.txt").write_text("nothing")
  refused(tmp_path, experts(4),
          f"^--from={tmp_path} is no checkpoint: give a model directory")
  refused(tmp_path / "none", experts(4), "none is no checkpoint")


def test_a_checkpoint_of_no_known_model(tmp_path):
  with operation.tf.Graph().as_default(), operation.tf.Session() as session:
    operation.tf.get_variable("dense/bias", [3])
    session.run(operation.tf.global_variables_initializer())
    operation.tf.train.Saver().save(session, f"{tmp_path}/model.ckpt")
  refused(f"{tmp_path}/model.ckpt", experts(4),
          "has no variable of this model: it has dense/bias, and this model ")


def test_numbers_that_do_not_divide(four, tmp_path):
  """Found before anything is read, so by --dry_run, too."""
  refused(four, experts(6), "^4 experts cannot become 6: one number has to")
  refused(four, experts(2, 3), "^4 experts cannot become 6: ")
  refused(four, experts(3), "4 experts cannot become 3.*--fewer_experts=")
  save(experts(2, 3), tmp_path / "levels")
  refused(tmp_path / "levels", experts(3, 2), "^2 experts cannot become 3: ")


def test_other_sizes(four):
  refused(four, configured(*MOE, "MoE.levels = [4]", "d_model = 32"),
          "only feed-forward layers change, in their experts and hidden units")
  refused(four, configured(*DENSE, "DenseReluDense.activation = 'gelu'",
                           "DenseReluDense.hidden_size = 24"),
          "set hidden_size to 16")


def test_a_checkpoint_that_is_damaged(four):
  data, = four.glob("*.data*")
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  found = operation.prepare(str(four), experts(8), Options())
  with pytest.raises(ValueError, match=(
      rf"{four}/model\.ckpt-7 is damaged: \S+ cannot be read \(.*\)\. Give ")):
    found.values()


def program(directory, *arguments):
  """The last line of the program, which has to end with the status 1."""
  result = forked.run(
      "mtf_moe.surgery", *arguments, "--gin_file=runs/tiny.gin",
      "--gin_file=meshes/cpu_1.gin", cwd=directory)
  assert result.returncode == 1, result.stderr
  *_, said = result.stderr.strip().splitlines()
  assert "Traceback" not in result.stderr
  return said


def test_the_program_says_so_in_one_line(tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("something")
  assert program(tmp_path, "--dry_run") == (
      "mtf_moe.surgery: --from is not set: name a model directory.")
  assert program(tmp_path, "--from=full", "--model_dir=full") == (
      "mtf_moe.surgery: --model_dir=full is not empty: choose a new directory, "
      "for nothing is written over.")
  assert program(tmp_path, "--from=full", "--model_dir=new").startswith(
      "mtf_moe.surgery: --from=full is no checkpoint: give a model directory")
  assert not os.path.exists(tmp_path / "new")
