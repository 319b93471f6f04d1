"""Several processes that train together, here on one machine."""

import signal
import socket
import subprocess
import time

import pytest
import tensorflow.compat.v1 as tf

pytest.importorskip("jax")

from mtf_moe.train import processes
from tests.train import device_training_test
from tests.train import interruption_test
from tests.train import program

LAST = 60
STEPS = [*interruption_test.RANDOM, f"run.train_steps = {LAST}",
         "run.save_checkpoints_steps = 10"]


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(directory, bindings_of, number=2, **kwargs):
  """Starts processes, each with its own bindings."""
  coordinator = f"--coordinator=127.0.0.1:{free_port()}"
  started = []
  for index, bindings in enumerate(bindings_of):
    arguments = device_training_test.on_devices(directory, *bindings, **kwargs)
    arguments["args"] += [
        coordinator, f"--num_processes={number}", f"--process_id={index}"]
    started.append(subprocess.Popen(
        **arguments, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE))
  return started


def ends(started):
  """(exit status, standard output, standard error) of each."""
  said = [process.communicate(timeout=300) for process in started]
  return [(process.returncode, *texts)
          for process, texts in zip(started, said)]


def train(directory, number, **kwargs):
  results = ends(start(directory, [STEPS] * number, number, **kwargs))
  for status, _, said in results:
    assert status == 0, said
  return [output for _, output, _ in results]


def wait_for_step(step, model, process):
  interruption_test.wait_for(
      lambda: program.newest_step(model) >= step, process)


def test_processes_that_are_lost(tmp_path):
  """The other one ends, and both go on, bit for bit."""
  program.write_text(tmp_path)
  first, second = train(tmp_path, 2, model="whole")
  assert "training on 4 devices (cpu) of 2 processes with JAX" in first
  assert f"\nstep {LAST} of {LAST}, loss " in first
  assert f"step {LAST}" not in second
  model = tmp_path / "model"
  for lost, step in ((1, 10), (0, 30)):
    started = start(tmp_path, [STEPS] * 2)
    wait_for_step(step, model, started[0])
    started[lost].kill()
    killed_at = time.monotonic()
    left = started[1 - lost]
    _, said = left.communicate(timeout=60)
    assert time.monotonic() - killed_at < 15
    assert left.returncode == 1
    assert (f"error: process {lost} has ended, and process {1 - lost} ends "
            "with it. If it does not say why, it was lost: the same") in said
    assert "Traceback" not in said and "stack trace" not in said
    started[lost].wait()
    assert step <= program.newest_step(model) < LAST
  first, _ = train(tmp_path, 2)
  assert "resuming at step" in first
  types = tf.train.load_checkpoint(
      str(model / f"model.ckpt-{LAST}")).get_variable_to_dtype_map()
  assert types["global_step"] == tf.int64
  assert program.bits(model, LAST) == program.bits(tmp_path / "whole", LAST)


def test_a_signal_to_one_stops_both(tmp_path):
  program.write_text(tmp_path)
  started = start(tmp_path, [STEPS] * 2)
  model = tmp_path / "model"
  wait_for_step(10, model, started[0])
  started[1].send_signal(signal.SIGTERM)
  for status, _, said in ends(started):
    assert status == 128 + signal.SIGTERM, said
    assert "stack trace" not in said
  stopped_at = program.newest_step(model)
  assert 10 <= stopped_at < LAST
  # On another mesh, or alone: the checkpoint is an ordinary one.
  said = program.run_arguments(device_training_test.on_devices(
      tmp_path, *STEPS)).stdout
  assert f"resuming at step {stopped_at}" in said


def test_other_configurations(tmp_path):
  program.write_text(tmp_path)
  (first, _, said), (second, _, at_second) = ends(start(
      tmp_path, [["run.train_steps = 2"], ["run.train_steps = 3"]]))
  assert first == second == 1
  assert said.strip().splitlines()[-1] == (
      "mtf_moe.train: other processes have another configuration (process 1 "
      "says which): start all of them with the same.")
  assert at_second.strip().splitlines()[-1].startswith(
      "mtf_moe.train: process 1 has run.train_steps = '3', and process 0 "
      "has '2': start all")
  assert not (tmp_path / "model").exists()


def test_a_mistake_of_the_first(tmp_path):
  program.write_text(tmp_path)
  program.run_arguments(device_training_test.on_devices(
      tmp_path, *STEPS, "run.train_steps = 2"))
  (first, _, said), (second, _, at_second) = ends(start(
      tmp_path, [[*STEPS, "d_model = 32"]] * 2))
  assert first == second == 1
  assert "holds a checkpoint of another model" in said.splitlines()[-1]
  assert "error: process 0 has ended, and process 1 ends" in at_second
  assert "stack trace" not in at_second


@pytest.mark.slow
def test_four(tmp_path):
  program.write_text(tmp_path)
  first, *_ = train(tmp_path, 4)
  assert "training on 4 devices (cpu) of 4 processes with JAX" in first


@pytest.mark.parametrize("flags, said", [
    ((None, 2, 0), "--num_processes and --process_id are for several"),
    (("host", 2, 0), "--coordinator=host needs the form host:port"),
    (("host:123", None, 0), "--coordinator=host:123 needs the form host:port"),
    (("host:99999", 2, 0), "--coordinator=host:99999 needs the form"),
    (("host:123", 0, 0), "--num_processes=0 must be how many there are"),
    (("auto", 2, None), "--coordinator=auto finds --num_processes"),
    (("host:123", 2, 2), "--process_id=2 is none of --num_processes=2: they "
     "are counted from 0 to 1"),
])
def test_flags(flags, said):
  with pytest.raises(ValueError, match=said):
    processes.check_flags(*flags)
