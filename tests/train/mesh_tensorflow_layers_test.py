"""Models whose layers are mesh_tensorflow's own train, plan and report."""

import gin
from mesh_tensorflow.transformer import moe
from mesh_tensorflow.transformer import transformer
import pytest

from mtf_moe.hparams import MoeHparams
from mtf_moe.plan import planning
from mtf_moe.report import page
from mtf_moe.report import runs
from mtf_moe.run import configured_step
from mtf_moe.run import layer_facts
from mtf_moe.run.configured_model import ConfiguredModel
from tests import gin_config
from tests.train import small_models

assert configured_step


@gin.configurable(module="tests")
class ReferenceMoE1D(transformer.TransformerLayer):
  """mesh_tensorflow's function, which needs to know where padding is."""

  def call(self, context, x, losses=None):
    hparams = moe.HParams(
        **{name: MoeHparams.default(name) for name in MoeHparams.names()})
    hparams.moe_num_experts, hparams.moe_hidden_size = 4, 16
    outputs, loss = moe.transformer_moe_layer_v1(
        x, context.model.model_dim, hparams, context.train,
        context.variable_dtype, layout=context.model.layout,
        mesh_shape=context.model.mesh_shape, nonpadding=context.nonpadding,
        num_microbatches=context.num_microbatches)
    if context.losses is not None:
      context.losses.append(loss)
    return outputs


def layers(name):
  return ("transformer.make_layer_stack.layers = "
          f"[@transformer_layers.SelfAttention, @{name}]")


FLAT = [layers("mesh_tensorflow.transformer.moe.MoE1D"),
        "MoE1D.num_experts = 16", "MoE1D.hidden_size = 16"]
DENSE = [layers("transformer_layers.DenseReluDense"),
         "DenseReluDense.hidden_size = 16"]
REFERENCE = [layers("tests.ReferenceMoE1D")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  directory = tmp_path_factory.mktemp("text")
  (directory / "text.txt").write_text("abcd efgh ijkl mnop " * 100)
  return directory


@pytest.mark.parametrize("name, bindings, mixtures", [
    ("flat", FLAT, 1), ("dense", DENSE, 0), ("reference", REFERENCE, 0)])
def test_trains_plans_and_reports(name, bindings, mixtures, text):
  model = small_models.Model(str(text / name), ["runs/tiny.gin"], [
      f"TextFiles.glob = '{text}/text.txt'", "TextFiles.held_out = 0.2",
      *bindings])
  printed = small_models.run(
      model, small_models.ONE_SLICE, "run.train_steps = 2")
  assert "step 2 of 2, loss" in printed
  assert len(layer_facts.read(model.directory)) == mixtures
  run, = runs.read([model.directory])
  assert ("layer 1 (block_000/layer_001)" in page.render([run])) == bool(
      mixtures)

  gin_config.parse(model.files, [*small_models.SETTINGS, *model.bindings])
  plan = planning.make(ConfiguredModel.from_gin())
  assert len(plan.mixtures) == mixtures
  assert plan.costs.flops > 0
  # On one slice, nothing is wrong with the rules that layouts have for others.
  assert not [said for said in plan.findings if "layout_rules" in said]


def test_a_token_meets_one_and_a_quarter_of_16_experts():
  gin_config.parse(["runs/tiny.gin"], [
      *small_models.SETTINGS, *FLAT, "MoE1D.min_expert_capacity = 1",
      "run.perplexity_eval_steps = None"])
  plan = planning.make(ConfiguredModel.from_gin())
  # Of each, 16 x 16 weights on the way in and as many on the way out.
  assert plan.costs.expert_parameters == 16 * 2 * 16 * 16
  dense = plan.costs.total_parameters - plan.costs.expert_parameters
  met = plan.active_parameters - dense
  assert 0.9 < met / (2 * 16 * 16) <= 1.25
