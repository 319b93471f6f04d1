"""Evaluations measure: repeatable, undiluted, and right."""

import glob
import math
import re

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import transformer_layers
from mtf_moe.run import console
from mtf_moe.train import evaluation
from tests import gin_config
from tests import harness
from tests.train import small_models
from tests.train.small_models import LENGTH
from tests.train.small_models import ONE_SLICE
from tests.train.small_models import STEPS
from tests.train.small_models import metrics
from tests.train.small_models import run

PERPLEXITY = ["runs/perplexity.gin"]
NUM_BYTES = 1000  # A fifth of the text is held out.
NUM_TOKENS = NUM_BYTES + 1  # The end of the document is predicted as well.
# 63 windows, the last of which is not full, in two batches: but for one
# window, the second is empty.
NEARLY_EMPTY = ["batch_size = 62", "MoE2D.loss_coef = 0"]
LITTLE_ROOM = [
    "MoE2D.min_expert_capacity = 1", "MoE2D.capacity_factor_eval = 0.25"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return small_models.train_language_model(tmp_path_factory.mktemp("model"))


def evaluated(model, name, *bindings, mesh=ONE_SLICE):
  """(what an evaluation prints, its metrics by tag).

  Args:
    model: a Model.
    name: a string, the suffix of the directory with its metrics.
    *bindings: lines of gin.
    mesh: a pair, the size of the mesh.
  """
  printed = run(model, mesh, f"run.eval_dir_suffix = '{name}'", *bindings,
                files=PERPLEXITY)
  return printed, metrics(directory(model, name))


def directory(model, name):
  found, = glob.glob(f"{model.directory}/eval_eval_*[0-9]_{name}")
  return found


def log_likelihoods(model):
  """Of every held-out token, by NumPy from logits without a program around.

  Args:
    model: a Model.

  Returns:
    an array of float64
  """
  with open(f"{model.directory}/../text.txt", "rb") as f:
    ids = [byte + 3 for byte in f.read()[-NUM_BYTES:]] + [1]
  num_windows = math.ceil(len(ids) / LENGTH)
  windows = np.zeros([num_windows, LENGTH], int)
  windows.flat[:len(ids)] = ids
  gin_config.parse(model.files, [*small_models.SETTINGS, *model.bindings])
  impl = harness.mesh_impl()
  network = utils.build_model("lm", 259, 259, impl.layout_rules, impl.shape)

  def logits(tensors):
    targets = mtf.cast(tensors["targets"], tf.int32)
    return network.call_simple(
        inputs=transformer.autoregressive_inputs(targets), targets=targets,
        compute_loss=False, mode="eval",
        variable_dtype=harness.variable_dtype())[0]

  checkpoint = tf.train.load_checkpoint(
      f"{model.directory}/model.ckpt-{STEPS}")
  dims = [mtf.Dimension("batch", num_windows), mtf.Dimension("length", LENGTH)]
  values = harness.evaluate(
      logits, {"targets": (windows, dims)},
      lambda name, shape: checkpoint.get_tensor(name))
  values = values.astype(np.float64).reshape([-1, values.shape[-1]])[:len(ids)]
  values -= np.log(np.sum(np.exp(values), axis=-1, keepdims=True))
  return values[np.arange(len(ids)), ids]


def test_a_measurement(model):
  """Nats, perplexity and bits per byte, padding or not; and mtf's own loss."""
  expected = log_likelihoods(model)
  nats = -expected.mean()
  bits_per_byte = -expected.sum() / math.log(2) / NUM_BYTES
  assert len(expected) == NUM_TOKENS

  printed, found = evaluated(model, "nearly_empty", *NEARLY_EMPTY)
  assert found["neg_log_perplexity"] == pytest.approx(-nats, rel=1e-5)
  lines = printed.splitlines()
  shown = re.fullmatch(
      rf"evaluated step {STEPS} on 1,001 tokens: (.*) nats per token, "
      r"perplexity (.*), (.*)% predicted right", lines[-3])
  assert float(shown.group(1)) == pytest.approx(nats, abs=1e-4)
  assert float(shown.group(2)) == pytest.approx(math.exp(nats), abs=0.01)
  assert lines[-2].startswith(
      "held-out text: 1 documents, 1,000 bytes, 1,001 tokens; gzip -9 needs ")
  assert float(lines[-1].removeprefix("held-out bits per byte: ")) == (
      pytest.approx(bits_per_byte, abs=1e-3))
  # The trap: its "loss" divides by all places, most of which are empty.
  places = 2 * 62 * LENGTH
  assert found["loss"] == pytest.approx(nats * NUM_TOKENS / places, rel=1e-5)
  assert found["loss"] < 0.6 * nats


def test_the_same_number_every_time(model):
  printed, found = zip(*[
      evaluated(model, name, *LITTLE_ROOM, mesh=(2, 2))
      for name in ("first", "second")])
  assert printed[0] == printed[1]
  assert found[0].keys() > {"neg_log_perplexity", "loss", "token_accuracy"}
  paths = {tag for tag in found[0] if tag.startswith("checkpoint_path")}
  for tag in found[0].keys() - paths:
    assert found[0][tag] == found[1][tag], tag  # Bit for bit.


def test_says_how_far_it_is(model):
  printed, _ = evaluated(model, "progress")
  lines = printed.splitlines()
  assert lines[:2] == ["checking the configuration", "building the graph"]
  assert "evaluated 16 of 16 steps, 00:00 left" in lines


def with_dropless(model, name, *bindings):
  """(printed, nats per token as configured, nats per token dropless)."""
  printed, plain = evaluated(
      model, name, "evaluate.with_dropless = True", *bindings, mesh=(2, 2))
  dropless = metrics(directory(model, f"{name}_dropless"))
  return (printed, -plain["neg_log_perplexity"],
          -dropless["neg_log_perplexity"])


def test_room_for_all_costs_nothing(model):
  printed, plain, dropless = with_dropless(model, "room")
  assert plain == dropless
  assert printed.splitlines()[-1] == (
      "dropping tokens costs +0.0000 nats per token, +0.0000 bits per byte, "
      f"over 1,001 tokens of step {STEPS}")


def test_what_dropping_tokens_costs(model):
  printed, plain, dropless = with_dropless(model, "little", *LITTLE_ROOM)
  _, huge = evaluated(
      model, "huge", "MoE2D.capacity_factor_eval = 100.0",
      "MoE2D.capacity_factor_second_level = 100.0", mesh=(2, 2))
  assert dropless == -huge["neg_log_perplexity"]
  gap = plain - dropless
  assert abs(gap) > 1e-3
  shown = re.fullmatch(
      "dropping tokens costs (.*) nats per token, (.*) bits per byte, over "
      f"1,001 tokens of step {STEPS}", printed.splitlines()[-1])
  assert float(shown.group(1)) == pytest.approx(gap, abs=1e-4)
  assert float(shown.group(2)) == pytest.approx(
      gap * NUM_TOKENS / math.log(2) / NUM_BYTES, abs=1e-4)


@pytest.mark.parametrize("kind", ["MoE1D", "MoE2D", "MoE"])
def test_every_scope_is_dropless(kind):
  """Also one that sets it, and layers of any number of levels."""
  gin_config.parse(bindings=[
      f"encoder/{kind}.hidden_size = 4",
      f"decoder/{kind}.dropless_eval = False"])
  report = evaluation._Report(dict(eval_dir_suffix="mine"))
  report.begin_dropless()
  for scope, hidden_size in (("encoder", 4), ("decoder", 4096), (None, 4096)):
    with gin.config_scope(scope):
      hparams = getattr(transformer_layers, kind)().hparams
    assert hparams.moe_hidden_size == hidden_size and hparams.moe_dropless_eval
  assert gin.query_parameter("run.eval_dir_suffix") == "mine_dropless"


def test_data_sets_with_names_and_a_checkpoint_that_is_gone(capsys):
  def found(step, log_likelihood):
    return dict(global_step=step, num_eval_tokens=8.0, token_accuracy=0.5,
                neg_log_perplexity=log_likelihood)

  gin_config.parse()
  with console.opened():
    report = evaluation._Report(dict(eval_dataset_fn="given"))
    report.add("news", found(3, -2.5))
    report.add("news", found(5, -1.5))
    report.begin_dropless()
    assert gin.query_parameter("run.eval_checkpoint_step") == [3, 5]
    report.add("news_dropless", found(4, -2.0))
    report.add("news_dropless", found(5, -1.25))
    report.print_gaps()
  assert capsys.readouterr().out.splitlines() == [
      "evaluated step 3 on 8 tokens of news: 2.5000 nats per token, perplexity "
      "12.18, 50.0% predicted right",
      "evaluated step 5 on 8 tokens of news: 1.5000 nats per token, perplexity "
      "4.48, 50.0% predicted right",
      "evaluated step 4 on 8 tokens of news_dropless: 2.0000 nats per token, "
      "perplexity 7.39, 50.0% predicted right",
      "evaluated step 5 on 8 tokens of news_dropless: 1.2500 nats per token, "
      "perplexity 3.49, 50.0% predicted right",
      "the checkpoint of step 3 is gone: nothing to compare with",
      "dropping tokens costs +0.2500 nats per token, over 8 tokens of step 5"]


def test_other_data_has_no_bits_per_byte(model):
  printed, _ = evaluated(model, "training", "run.dataset_split = 'train'",
                         "run.perplexity_eval_steps = 2")
  assert " on 128 tokens: " in printed.splitlines()[-1]
  printed, _ = evaluated(model, "part", "run.perplexity_eval_steps = 2")
  assert "not the whole held-out part of 1,001 tokens" in (
      printed.splitlines()[-1])


@pytest.mark.parametrize("lines, said", [
    (["evaluate.with_dropless = 1"], "evaluate.with_dropless = 1 .*True or"),
    (["evaluate.with_dropless = True", "run.eval_checkpoint_step = None"],
     "run.eval_checkpoint_step = None waits .*-1"),
])
def test_options_that_are_refused(lines, said):
  with pytest.raises(ValueError, match=said):
    gin_config.parse(bindings=lines)
    evaluation.check_options()


def parse_text(directory, *bindings):
  """Configures a run on two files, one of which is held out: 64 tokens."""
  for name in ("f1", "f2"):
    (directory / name).write_text(63 * "a")
  gin_config.parse(["meshes/cpu_1.gin", "data/bytes.gin"], [
      f"TextFiles.glob = '{directory}/f*'", "TextFiles.held_out = 'f2'",
      *bindings])


# 4 windows of 16, or 8 of 8.
@pytest.mark.parametrize("steps, bindings", [
    (2, ["batch_size = 2"]),
    (4, ["run.batch_size = 1"]),
    (1, ["run.batch_size = ('tokens_per_batch', 64)"]),
    (2, ["run.batch_size = ('sequences_per_batch', 3)"]),
    (2, ["run.batch_size = ('tokens_per_replica', 32)"]),
    (1, ["run.batch_size = ('tokens_per_replica', 32)",
         "run.mesh_shape = 'outer:1,batch:2'"]),
    (4, ["batch_size = 2", "run.sequence_length = 8"]),
    (4, ["run.batch_size = ('tokens_per_batch', 32)",
         "run.sequence_length = {'inputs': 16, 'targets': 8}"]),
    (4, ["batch_size = 2", "sequence_length = 8"]),
    # As configurations of one's own may have it.
    (2, ["batch_size = 2", "held_out_steps.batch_size = %batch_size",
         "held_out_steps.sequence_length = %sequence_length",
         "held_out_steps.vocabulary = %vocabulary"]),
])
def test_the_evaluation_follows_the_run(tmp_path, steps, bindings):
  parse_text(tmp_path, "sequence_length = 16", *bindings)
  assert gin.get_bindings("utils.run")["perplexity_eval_steps"] == steps
  evaluation.check_options()


def test_steps_for_other_batches(tmp_path):
  parse_text(
      tmp_path, "run.batch_size = 4", "held_out_steps.batch_size = 2")
  with pytest.raises(ValueError, match=(
      r"held_out_steps\.batch_size = 2, and run\.batch_size makes batches of 4"
      )):
    evaluation.check_options()


def test_a_perplexity_beyond_all_numbers():
  result = evaluation.Result(1, 1, log_likelihood=-1e4, accuracy=0.0)
  assert result.perplexity == math.inf
