"""Checkpoints of models made into those of others, and what these compute."""

import pathlib

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options
from mtf_moe.train import masters
from tests import forked
from tests import harness
from tests.surgery.checkpoints import DENSE
from tests.surgery.checkpoints import MOE
from tests.surgery.checkpoints import PLACE
from tests.surgery.checkpoints import configured
from tests.surgery.checkpoints import experts
from tests.surgery.checkpoints import operate
from tests.surgery.checkpoints import read
from tests.surgery.checkpoints import save
from tests.train import program


def loss(model, values):
  """The loss of an evaluation, with these values."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    ids = np.random.default_rng(1).integers(3, 250, [4, 16])
    shape = mtf.Shape([*model.batch_dims, model.length_dim("targets")])
    targets = mtf.import_tf_tensor(
        mesh, tf.constant(ids.reshape(shape.to_integer_list), tf.int32), shape)
    result = model.loss_of({"targets": targets}, "eval")
    lowering = mtf.Lowering(graph, {mesh: harness.mesh_impl(1, 1)},
                            autostack=False)
    fetched = lowering.export_to_tf_tensor(result)
    with tf.Session() as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        if variable.op.name in values:
          variable.load(values[variable.op.name], session)
      session.run(lowering.copy_masters_to_slices())
      return float(session.run(fetched))


@pytest.mark.parametrize("levels", [(4,), (2, 4), (2, 2, 2)], ids=str)
def test_upcycled_models_compute_what_the_dense_one_does(tmp_path, levels):
  """Whatever routers choose, for the weights of experts add up to one."""
  dense = configured(*DENSE)
  values = save(dense, tmp_path / "dense")
  expected = loss(dense, values)
  model = experts(*levels)
  made = operate(tmp_path / "dense", model, tmp_path / "made")
  assert made["global_step"] == 7
  assert loss(model, made) == pytest.approx(expected, rel=1e-5)
  wi = made[f"{PLACE}/MoE/wi/kernel"]
  np.testing.assert_array_equal(
      wi, np.broadcast_to(values[f"{PLACE}/DenseReluDense/wi/kernel"],
                          wi.shape))
  apart = operate(
      tmp_path / "dense", model, tmp_path / "apart", noise=0.1, slots=False)
  difference = apart[f"{PLACE}/MoE/wi/kernel"] - wi
  assert difference.std() == pytest.approx(0.1 * wi.std(), rel=0.2)
  slots = [name for name in made if name.endswith("wi/kernel_slot_v")]
  assert slots and all(apart[name].std() == 0.0 for name in slots)
  assert all(made[name].std() > 0.0 for name in slots)


def test_parts_of_the_hidden_layer(tmp_path):
  """Two experts, each with half of the units: both are always chosen."""
  dense = configured(*DENSE)
  save(dense, tmp_path / "dense")
  model = experts(2, hidden=8)
  made = operate(tmp_path / "dense", model, tmp_path / "made")
  dense_wi = read(tmp_path / "dense")[f"{PLACE}/DenseReluDense/wi/kernel"]
  np.testing.assert_array_equal(
      np.concatenate(list(made[f"{PLACE}/MoE/wi/kernel"]), -1), dense_wi)
  with pytest.raises(ValueError, match="no multiple of that"):
    operation.prepare(str(tmp_path / "dense"), experts(3, hidden=8), Options())
  with pytest.raises(ValueError, match="set hidden_size to 16"):
    operation.prepare(str(tmp_path / "dense"), experts(2, hidden=12), Options())


@pytest.mark.parametrize("levels", [(2, 3), (2, 3, 2)], ids=str)
def test_one_level_and_several_there_and_back(tmp_path, levels):
  flat = experts(int(np.prod(levels)))
  values = save(flat, tmp_path / "flat")
  operate(tmp_path / "flat", experts(*levels), tmp_path / "several")
  back = operate(tmp_path / "several",
                 experts(int(np.prod(levels))), tmp_path / "back")
  for name, value in values.items():
    if "gating" in name and "_slot_" in name:
      continue  # Slots of routers start anew.
    np.testing.assert_array_equal(back[name], value, name)


def test_back_to_dense_by_averaging(tmp_path):
  model = experts(2, 2)
  values = save(model, tmp_path / "experts")
  made = operate(tmp_path / "experts", configured(*DENSE), tmp_path / "dense")
  np.testing.assert_allclose(
      made[f"{PLACE}/DenseReluDense/wo/kernel"],
      values[f"{PLACE}/MoE/wo/kernel"].mean((0, 1), np.float64), atol=1e-7)


def test_types_are_told(tmp_path):
  model = experts(2, 2)
  values = save(model, tmp_path / "small", tf.bfloat16.as_numpy_dtype)
  found = operation.prepare(str(tmp_path / "small"), model, Options())
  assert "as it is, from bfloat16" in found.table()
  for name, value in found.values().items():
    np.testing.assert_array_equal(value, values[name].astype(value.dtype))


def test_an_encoder_decoder_of_t5(tmp_path):
  """Every variable of the model, by the names that mesh_tensorflow gives."""
  files = ["models/bitransformer_small.gin"]
  model = configured("d_kv = 8", "num_heads = 2", files=files)
  target = {name: variable.shape for name, variable in
            operation.saved_variables.of_graph(model.training_graph).items()}
  # The same with dense layers in place of mixtures.
  source = {}
  for name, shape in target.items():
    if "/MoE2D/" not in name:
      source[name] = shape
    elif "gating" not in name:
      source[name.replace("MoE2D", "DenseReluDense")] = shape[2:]
  values = {name: np.zeros(shape, np.float32) for name, shape in source.items()}
  with masters.Masters(values, str(tmp_path), None) as writer:
    writer.save(0, values)
    writer.wait()
  found = operation.prepare(str(tmp_path), model, Options())
  table = found.table()
  assert "encoder/block_000/" in table and "decoder/block_000/" in table
  drawn = {move.target for move in found.moves if not move.sources}
  assert drawn == {name for name in target if "gating" in name}
  assert not found.unused
  assert table.endswith(
      f"{len(target) - 1 - len(drawn)} of {len(target) - 1} variables come "
      f"from {tmp_path}/model.ckpt-0, {len(drawn)} are drawn anew, 0 are "
      "dropped; the new checkpoint is at step 0")


def test_what_cannot_be_done(tmp_path):
  save(experts(4), tmp_path / "four")
  with pytest.raises(ValueError, match="4 experts cannot become 6"):
    operation.prepare(
        str(tmp_path / "four"), experts(2, 3), Options()).values()
  with pytest.raises(ValueError, match="is no checkpoint"):
    operation.prepare(str(tmp_path), experts(4), Options())
  with pytest.raises(ValueError, match="only feed-forward layers change"):
    operation.prepare(str(tmp_path / "four"), configured(
        *MOE, "MoE.levels = [4]", "d_model = 32"), Options())
  found = operation.prepare(str(tmp_path / "four"), experts(4), Options())
  with pytest.raises(ValueError, match="is not empty"):
    found.write(str(tmp_path / "four"))


def run(directory, module, *arguments):
  return forked.run(
      f"mtf_moe.{module}", *arguments,
      *(f"--gin_file={name}" for name in program.FILES),
      *(f"--gin_param={line}" for line in [
          "TextFiles.glob = 'text.txt'", *program.SETTINGS]), cwd=directory)


def test_training_goes_on_from_there(tmp_path):
  """More experts, then trained; the source stays as it is."""
  program.write_text(tmp_path)
  program.run(tmp_path, "run.train_steps = 2")
  source = {path: path.read_bytes()
            for path in pathlib.Path(tmp_path / "model").glob("*ckpt*")}
  more = "--gin_param=MoE2D.expert_y = 4"
  result = run(tmp_path, "surgery", "--from=model", "--model_dir=more", more,
               "--dry_run")
  assert result.returncode == 0, result.stderr
  assert "copied: 2 x 2 experts to 2 x 4 experts" in result.stdout
  assert not (tmp_path / "more").exists()
  result = run(tmp_path, "surgery", "--from=model", "--model_dir=more", more)
  assert result.returncode == 0, result.stderr
  result = run(tmp_path, "train", "--model_dir=more", more,
               "--gin_param=run.train_steps = 4")
  assert result.returncode == 0, result.stderr
  assert program.newest_step(tmp_path / "more") == 4
  assert "resuming at step 2" in result.stdout
  assert "not as when" not in result.stdout + result.stderr
  # By what training has recorded, under the names that it has for layers.
  result = run(tmp_path, "surgery", "--from=more", "--dry_run",
               "--fewer_experts=busiest")
  assert result.returncode == 0, result.stderr
  assert "the busiest stay: 2 x 4 experts to 2 x 2 experts" in result.stdout
  assert source == {path: path.read_bytes() for path in source}
  result = run(tmp_path, "surgery", "--from=model", "--model_dir=more", more)
  assert result.returncode == 1
  *_, said = result.stderr.strip().splitlines()
  assert said.startswith("mtf_moe.surgery: --model_dir=more is not empty")
