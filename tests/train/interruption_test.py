"""Runs that meet what runs meet: killed, stopped, damaged, out of space."""

import os
import random
import resource
import signal
import subprocess
import time

import pytest

from tests.train import program

# What is drawn at random in training: dropout in all layers, second choices.
RANDOM = ["dropout_rate = 0.1", "MoE2D.dropout_rate = 0.1",
          "MoE2D.second_policy_train = 'random'"]


@pytest.fixture
def directory(tmp_path):
  program.write_text(tmp_path)
  return tmp_path


def start(directory, *bindings, **kwargs):
  return start_arguments(program.program(directory, *bindings, **kwargs))


def start_arguments(arguments):
  return subprocess.Popen(
      **arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition, process):
  """Waits until a condition holds, or the process has ended."""
  deadline = time.monotonic() + 300
  while not condition() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.0005)


def remains(model):
  """The checkpoint that is being written, if there is one."""
  return [name for name in os.listdir(model) if "_temp" in name
          ] if model.exists() else []


def kill_while_writing(process, model, rng):
  """In one of the first checkpoints: there is one at the start of a run."""
  for _ in range(rng.randint(0, 2)):
    wait_for(lambda: remains(model), process)
    wait_for(lambda: not remains(model), process)
  wait_for(lambda: remains(model), process)
  time.sleep(rng.uniform(0, 0.005))


def kill_between_steps(process, model, rng):
  before = program.newest_step(model)
  wait_for(lambda: program.newest_step(model) > before, process)
  time.sleep(rng.uniform(0, 2))


def kill_at_the_start(process, model, rng):
  del process, model
  time.sleep(rng.uniform(0, 5))


@pytest.mark.parametrize("num_kills", [
    3, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_runs_end_as_one_in_one_piece(num_kills, directory):
  """Bit for bit, with optimizer slots, step, random draws and data."""
  steps = 40 * num_kills  # More than runs get to before they are killed.
  bindings = [*RANDOM, f"run.train_steps = {steps}", "d_model = 64",
              # Large enough to be caught while it is written.
              "MoE2D.hidden_size = 2048", "run.save_checkpoints_steps = 3",
              "run.keep_checkpoint_max = 2"]
  program.run(directory, *bindings, model="in_one_piece")
  expected = program.bits(directory / "in_one_piece", steps)

  model = directory / "model"
  rng = random.Random(num_kills)
  ways = [kill_while_writing, kill_between_steps, kill_at_the_start]
  print("\n| killed | way | newest step, before | after | half a checkpoint |\n"
        "|---|---|---|---|---|")
  for number in range(num_kills):
    way = ways[number % len(ways)]
    before = program.newest_step(model)
    process = start(directory, *bindings)
    way(process, model, rng)
    process.kill()
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed
    print(f"| {number + 1} | {way.__name__} | {before} | "
          f"{program.newest_step(model)} | {'yes' if remains(model) else ''} |")
  last = program.run(directory, *bindings)
  assert f"step {steps} of {steps}" in last.stdout
  assert not remains(model)
  actual = program.bits(model, steps)
  assert any("_slot_" in name for name in actual)
  assert actual.keys() == expected.keys()
  assert [name for name in actual if actual[name] != expected[name]] == []


@pytest.mark.slow
def test_a_killed_run_that_began_from_a_checkpoint(directory):
  program.run(directory, *RANDOM, "run.train_steps = 4", model="source")
  bindings = [*RANDOM, f"run.init_checkpoint = '{directory}/source'",
              "run.train_steps = 30"]
  program.run(directory, *bindings, model="in_one_piece")
  model = directory / "model"
  process = start(directory, *bindings)
  wait_for(lambda: program.newest_step(model) > 4, process)
  process.kill()
  printed, _ = process.communicate()
  assert process.returncode == -signal.SIGKILL, printed
  assert "the run starts at step 4" in printed
  (directory / "source").rename(directory / "gone")
  last = program.run(directory, *bindings)
  assert "is not needed any more" in last.stdout
  assert program.bits(model, 30) == program.bits(directory / "in_one_piece", 30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(number, directory):
  model = directory / "model"
  process = start(directory, "run.train_steps = 100000",
                  "run.save_checkpoints_steps = 100000")
  for line in process.stdout:
    if line.startswith("step "):
      break
  process.send_signal(number)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert f"warning: {number.name}: saving, then stopping" in printed
  assert "the same command goes on from here" in printed
  assert "Traceback" not in printed
  step = program.newest_step(model)
  assert step > 0
  resumed = program.run(directory, f"run.train_steps = {step + 1}")
  assert f"resuming at step {step:,}" in resumed.stdout


def test_a_damaged_checkpoint_is_told_and_the_one_before_used(directory):
  model = directory / "model"
  program.run(directory, "run.train_steps = 4")
  data = max(model.glob("model.ckpt-4.data*"), key=os.path.getsize)
  damaged = bytearray(data.read_bytes())
  damaged[len(damaged) // 2] ^= 1  # A single bit.
  data.write_bytes(damaged)

  resumed = program.run(directory, "run.train_steps = 6")
  assert ("warning: the checkpoint model.ckpt-4 is damaged: it cannot be read"
          in resumed.stderr)
  assert "resuming at step 2" in resumed.stdout
  assert program.newest_step(model) == 6
  assert (model / "damaged" / data.name).read_bytes() == damaged
  assert "is damaged" in (model / "train.log").read_text()


def test_a_second_run_is_refused(directory):
  model = directory / "model"
  process = start(directory, "run.train_steps = 100000")
  try:
    wait_for(lambda: program.newest_step(model) > 0, process)
    second = program.run(directory, "run.train_steps = 2", check=False)
    assert second.returncode == 1
    assert (f"mtf_moe.train: --model_dir={model} is being trained by another "
            f"run (process {process.pid})") in second.stderr
    # Who only reads may.
    program.run(directory, files=["runs/perplexity.gin"])
    assert process.poll() is None
  finally:
    process.kill()
    process.communicate()


def test_a_directory_that_cannot_be_written(directory):
  (directory / "model").write_text("a file")
  refused = program.run(directory, check=False)
  assert refused.returncode == 1
  assert (f"mtf_moe.train: --model_dir={directory}/model cannot be written"
          in refused.stderr)
  assert "Traceback" not in refused.stderr


def limit_files(num_bytes):
  """Lets no file of the process grow larger, as a quota would."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.mark.parametrize("part_of_data", [0.01, 0.99])
def test_a_checkpoint_that_does_not_fit(part_of_data, directory):
  """Where files cannot grow, the run ends and keeps what was written.

  At the graph, which is written before, or at the checkpoint itself.
  """
  model = directory / "model"
  bindings = ["MoE2D.hidden_size = 65536"]
  program.run(directory, *bindings, "run.train_steps = 2")
  size = max(os.path.getsize(path) for path in model.glob("*.data*"))
  assert size > 1.1 * os.path.getsize(model / "graph.pbtxt")
  before = program.bits(model, 2)
  failed = subprocess.run(
      **program.program(directory, *bindings, "run.train_steps = 4"),
      preexec_fn=lambda: limit_files(int(part_of_data * size)),
      capture_output=True, text=True, check=False)
  assert failed.returncode == 1
  message = failed.stderr.splitlines()[-1]
  assert message.startswith(
      f"error: --model_dir={model} could not be written: ")
  assert ("graph.pbtxt" in message) == (part_of_data < 0.5)
  assert f"The last good checkpoint is {model}/model.ckpt-2. Make" in message
  assert "Traceback" not in failed.stderr
  assert not remains(model)
  assert program.bits(model, 2) == before
  program.run(directory, *bindings, "run.train_steps = 4")
  assert program.newest_step(model) == 4
