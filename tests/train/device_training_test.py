"""Training on the devices that JAX sees, beside training in TensorFlow."""

import glob
import shutil
import signal
import tempfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

pytest.importorskip("jax")

from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import masters
from mtf_moe.train import results
from mtf_moe.train import runtimes
from tests import gin_config
from tests.train import divergence_test
from tests.train import interruption_test
from tests.train import program

# The runtimes have other random numbers.
NO_DRAWS = [program.FOUR_SLICES, "MoE2D.second_policy_train = 'threshold'",
            "dropout_rate = 0.0", "MoE2D.dropout_rate = 0.0"]


# What one process has compiled, the next one finds.
COMPILED = tempfile.TemporaryDirectory()


def on_devices(directory, *bindings, **kwargs):
  arguments = program.program(
      directory, program.FOUR_SLICES, *bindings, **kwargs)
  arguments["args"].append("--runtime=xla")
  arguments["env"].pop("XLA_FLAGS", None)  # Other tests count devices there.
  arguments["env"] |= {
      "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
  return arguments


def scalars(model):
  """What event files have, by step and tag."""
  found = {}
  for file in sorted(glob.glob(f"{model}/events.*")):
    for event in tf.train.summary_iterator(file):
      for value in event.summary.value:
        if value.HasField("simple_value"):
          found.setdefault(event.step, {})[value.tag] = value.simple_value
  return found


def values(model, step):
  reader = tf.train.load_checkpoint(str(model / f"model.ckpt-{step}"))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """A directory with a model of two steps in TensorFlow."""
  directory = tmp_path_factory.mktemp("begun")
  program.write_text(directory)
  program.run(directory, *NO_DRAWS, "run.train_steps = 2")
  return directory


def test_evaluates_in_the_same_process(begun, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(begun, directory)
  said = program.run_arguments(on_devices(
      directory, *NO_DRAWS, "run.train_steps = 3",
      "train_model.evaluate_at_end = True")).stdout
  assert "\nstep 3 of 3, loss " in said
  line, = results.read(str(directory / "model"))
  assert said.splitlines()[-1] == (
      f"held-out bits per byte: {line['bits_per_byte']:.3f}")
  assert line["step"] == 3 and line["tokens_seen"] == 3 * 4 * 16
  training = line["training"]
  assert 0 < training["loss_without_auxiliary"] < training["loss"]


def test_both_runtimes_go_on_alike(begun, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(begun, directory)
  shutil.copytree(begun / "model", directory / "other")
  said = program.run(directory, *NO_DRAWS, "run.train_steps = 5").stdout
  assert "resuming at step 2" in said
  said = program.run_arguments(on_devices(
      directory, *NO_DRAWS, "run.train_steps = 5", model="other")).stdout
  assert "training on 4 devices (cpu) with JAX" in said
  assert "resuming at step 2" in said
  assert "\nstep 5 of 5, loss " in said
  assert "busiest expert" in said
  expected, found = (
      scalars(directory / model) for model in ("model", "other"))
  # Of the same step: all sums of it are of a few units of float32.
  recorded = {tag: value for tag, value in expected[3].items()
              if tag.startswith("moe/") or tag == "loss"}
  assert len(recorded) > 40
  for tag, value in recorded.items():
    np.testing.assert_allclose(found[3][tag], value, rtol=1e-5, atol=1e-6)
  expected, found = (
      values(directory / model, 5) for model in ("model", "other"))
  assert found.keys() == expected.keys()
  assert found["global_step"] == 5
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    # Three steps: Adafactor divides gradients by what is as small as they.
    np.testing.assert_allclose(
        found[name], value, rtol=0, atol=1e-4 * max(1e-3, np.abs(value).max()))
  # And back.
  said = program.run(
      directory, *NO_DRAWS, "run.train_steps = 6", model="other").stdout
  assert "resuming at step 5" in said


def test_it_begins_from_another_run(begun, tmp_path):
  program.write_text(tmp_path)
  said = program.run_arguments(on_devices(
      tmp_path, *NO_DRAWS, "run.train_steps = 3",
      f"run.init_checkpoint = '{begun}/model'")).stdout
  assert f"beginning at step 2, from {begun}/model/model.ckpt-2" in said
  assert program.bits(tmp_path / "model", 2) == program.bits(
      begun / "model", 2)
  assert program.newest_step(tmp_path / "model") == 3


def test_it_begins_from_one_of_another_type(begun, tmp_path):
  """Values in bfloat16 are read as the same in float32."""
  program.write_text(tmp_path)
  bfloat16 = tf.bfloat16.as_numpy_dtype
  narrow = {name: value.astype(bfloat16) if value.dtype == np.float32 else value
            for name, value in values(begun / "model", 2).items()}
  (tmp_path / "narrow").mkdir()
  with masters.Masters(narrow, str(tmp_path / "narrow"), None) as writer:
    writer.save(2, narrow)
    writer.wait()
  said = program.run_arguments(on_devices(
      tmp_path, *NO_DRAWS, "run.train_steps = 3",
      f"run.init_checkpoint = '{tmp_path}/narrow'")).stdout
  assert "of them in bfloat16, read as float32; " in said
  found = values(tmp_path / "model", 2)
  assert found.keys() == narrow.keys()
  for name, value in narrow.items():
    assert found[name].dtype != bfloat16
    np.testing.assert_array_equal(found[name], value.astype(found[name].dtype))


def test_a_stopped_run_ends_as_one_in_one_piece(tmp_path):
  """Bit for bit, with optimizer slots, step, random draws and data."""
  program.write_text(tmp_path)
  bindings = [
      *interruption_test.RANDOM, "run.train_steps = 400", "batch_size = 8",
      "run.save_checkpoints_steps = 50",  # In two microbatches.
      "serialize_num_microbatches.tokens_per_microbatch_per_replica = 16"]
  program.run_arguments(on_devices(tmp_path, *bindings, model="whole"))
  arguments = on_devices(tmp_path, *bindings)
  process = interruption_test.start_arguments(arguments)
  interruption_test.wait_for(
      lambda: program.newest_step(tmp_path / "model") >= 50, process)
  process.send_signal(signal.SIGTERM)
  said, _ = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM, said
  assert "SIGTERM: saving, then stopping" in said
  stopped_at = program.newest_step(tmp_path / "model")
  assert 50 <= stopped_at < 400
  said = program.run_arguments(arguments).stdout
  assert f"resuming at step {stopped_at}" in said
  assert program.bits(tmp_path / "model", 400) == program.bits(
      tmp_path / "whole", 400)


def test_a_loss_that_is_not_finite_is_not_saved(begun, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(begun, directory)
  model = directory / "model"
  layer = "transformer/block_000/layer_001/MoE2D"
  divergence_test.enlarge(model, f"{layer}/wi/kernel", 3e38)
  failed = program.run_arguments(
      on_devices(directory, *NO_DRAWS, "run.train_steps = 9"), check=False)
  assert failed.returncode == 1
  message = failed.stderr.splitlines()[-1]
  assert message.startswith("error: the loss is nan at step 3. First to go, at "
                            "step 3: the experts of block_000/layer_001")
  assert message.endswith(f"good checkpoint: {model}/model.ckpt-2.")
  assert program.newest_step(model) == 2


def test_other_numbers_of_devices(tmp_path):
  program.write_text(tmp_path)
  arguments = on_devices(tmp_path, "run.train_steps = 2")
  arguments["env"]["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
  failed = program.run_arguments(arguments, check=False)
  assert failed.returncode == 1
  assert failed.stderr.splitlines()[-1].startswith(
      "mtf_moe.train: run.mesh_shape = 'outer:2,batch:2' has 4 cores, and JAX "
      "sees 2 devices of the platform 'cpu'")
  assert not (tmp_path / "model").exists()


def configured(*bindings):
  gin_config.parse(
      ["models/lm_tiny.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
      ["batch_size = 4", "sequence_length = 16",
       "run.perplexity_eval_steps = None", *bindings])
  return ConfiguredModel.from_gin()


@pytest.mark.parametrize("runtime, binding, tpu, said", [
    ("gpu", "", None, r"train_model\.runtime = 'gpu' is not known\. Choose "
     "one of: 'tensorflow', 'xla'"),
    ("xla", "", "my_tpu", "--tpu=my_tpu names a TPU for TensorFlow"),
    ("xla", "run.ensemble_inputs = 2", None,
     "run.ensemble_inputs = 2 is not for"),
    ("xla", "run.checkpoint_input_pipeline = True", None,
     "run.checkpoint_input_pipeline = True is not for"),
])
def test_mistakes_of_runtimes(runtime, binding, tpu, said):
  with pytest.raises(ValueError, match=said):
    runtimes.prepare(configured(
        "import mtf_moe.train.training", binding,
        f"mtf_moe.train_model.runtime = {runtime!r}"), tpu)
