"""Plans, held to sums done by hand and to real lowerings."""

import collections
import dataclasses
import json
import math
import re

from absl import flags
from absl.testing import flagsaver
import gin
import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import levels
from mtf_moe import mesh_split
from mtf_moe import simd
from mtf_moe.plan import __main__ as program
from mtf_moe.plan import costs
from mtf_moe.plan import mixtures
from mtf_moe.plan import planning
from mtf_moe.plan import step
from mtf_moe.run.configured_model import ConfiguredModel
from tests import gin_config

FILES = ["models/lm_tiny.gin", "meshes/tpu_2x2.gin", "data/bytes.gin"]
D_MODEL, LENGTH, BATCH, X, Y, HIDDEN, LAYERS = 16, 32, 8, 4, 2, 24, 2
SIZES = [
    f"num_layers = {LAYERS}", f"d_model = {D_MODEL}", "d_kv = 8",
    "num_heads = 2", f"batch_size = {BATCH}", f"sequence_length = {LENGTH}",
    f"MoE2D.expert_x = {X}", f"MoE2D.expert_y = {Y}",
    f"MoE2D.hidden_size = {HIDDEN}", "MoE2D.group_size = 64",
    "run.perplexity_eval_steps = None", "MoE2D.summaries = False"]
# In a group at level one, with the default factors.
SLOTS_X = int(64 * 1.25 / X)
TOKENS = BATCH * LENGTH


def configured(*bindings, files=FILES, **kwargs):
  gin_config.parse(files, [*SIZES, *bindings])
  return ConfiguredModel.from_gin(**kwargs)


@pytest.fixture(scope="module")
def plan():
  made = planning.make(configured())
  return made


def lowered_on(mesh_impl, model):
  """The counters of a training step on another mesh implementation."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    loss = model.loss(mesh, "train")
    gradients = mtf.gradients(
        [loss], [v.outputs[0] for v in graph.trainable_variables])
    model.run["optimizer"](learning_rate=1.0).apply_grads(
        gradients, graph.trainable_variables)
    lowering = mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
    return sorted(c for c in lowering.counters if not c[0].startswith(
        ("output", "variables")))


def test_counts_what_a_lowering_for_all_slices_counts():
  model = configured("run.autostack = False")
  placement = mtf.placement_mesh_impl.PlacementMeshImpl(
      model.mesh_shape, model.layout, [""] * 4)
  counters = step.lower(model).counters
  counted = sorted(
      c for part in counters.values() for c in part
      if not c[0].startswith(("output", "variables")))
  assert counted == lowered_on(placement, model)
  assert len(counted) > 100


def test_traffic_is_that_of_the_program_for_tpus():
  """Of a real SimdMeshImpl: numbers, axes and bytes of all collectives."""
  model = configured("run.autostack = False")

  def training_step(tensors):
    mesh = tensors["unused"].mesh
    loss = model.loss(mesh, "train")
    variables = mesh.graph.trainable_variables
    gradients = mtf.gradients([loss], [v.outputs[0] for v in variables])
    return {"loss": loss}, model.run["optimizer"](
        learning_rate=1.0).apply_grads(gradients, variables)

  program = simd.build(
      training_step, model.mesh_shape, model.layout,
      {"unused": (tf.float32, [])})
  assert {(t.kind, t.axes): (t.count, t.bytes)
          for t in costs.count(step.lower(model)).traffic} == simd.totals(
              simd.collectives_of(program))


def test_parameters(plan):
  experts = 2 * D_MODEL * HIDDEN * X * Y
  # Attention, its biases for 32 distances, and the scales of two norms.
  block = (4 * D_MODEL * 8 * 2 + 32 * 2 + 2 * D_MODEL
           + D_MODEL * X + X * D_MODEL * Y + experts)
  assert plan.costs.expert_parameters == LAYERS * experts
  assert [count for name, count in plan.costs.parameters.items()
          if "block" in name] == [block] * LAYERS
  reached = plan.mixtures[0].balanced.experts_per_token
  assert plan.active_parameters == pytest.approx(
      plan.costs.total_parameters - LAYERS * experts
      + LAYERS * reached * 2 * D_MODEL * HIDDEN)
  # Experts lie on one core each, all else on all, in float32.
  dense = plan.costs.total_parameters - LAYERS * experts
  inner_routers = LAYERS * X * D_MODEL * Y  # Each of x has one.
  assert plan.costs.variable_bytes == 4 * (
      LAYERS * experts // 4 + inner_routers // 2 + dense - inner_routers)


def test_all_to_alls(plan):
  """Rows of both levels, two ways, forward and back; and the importance."""
  along = {t.axes: t for t in plan.costs.traffic if t.kind == "all-to-all"}
  slots = TOKENS // 64 * X * SLOTS_X  # On all cores.
  rows = 4 * slots * D_MODEL // 4 * 2  # On a core, in bfloat16.
  # The mixture decides on the slots of level two: with a factor of 1.0, as
  # many as it has tokens.
  assert along["outer",].bytes == LAYERS * rows
  assert along["outer",].count == LAYERS * 4
  assert along["batch",].count == LAYERS * 5
  assert along["batch",].bytes == LAYERS * (rows + slots // 4 * 2)
  assert not [t for t in plan.costs.traffic if t.kind == "all-concat"]


def test_sizes_are_those_of_the_tensors(plan):
  mixture, = plan.mixtures
  assert mixture.layers == tuple(
      f"transformer/block_{i:03}/layer_001/MoE2D" for i in range(LAYERS))
  found = collections.defaultdict(set)
  for op in step.lower(configured()).graph.operations:
    for t in op.outputs:
      names = t.shape.dimension_names
      if names[-2:] == ["expert_x_unsplit", "expert_capacity_x"] or (
          names[-2:] == ["expert_y_unsplit", "expert_capacity_y"]):
        *batch, group, experts, capacity = [d.size for d in t.shape.dims]
        found[names[-1]].add((batch[0], batch[1], group, experts, capacity))
  outer, inner = mixture.levels
  assert {(a * g, s, x, c) for a, g, s, x, c in found["expert_capacity_x"]} == {
      (outer.groups, outer.group_size, outer.experts, outer.capacity)}
  assert {(h, t, y, d) for _, h, t, y, d in found["expert_capacity_y"]} == {
      (inner.groups, inner.group_size, inner.experts, inner.capacity)}
  assert (outer.group_size, outer.capacity) == (64, SLOTS_X)
  assert outer.real_factor == X * SLOTS_X / 64
  assert mixture.slots_per_token == X * SLOTS_X / 64  # 1.0 at level two.


@pytest.mark.parametrize("bindings, slots", [
    ([], X * Y),  # Room for every token at every expert,
    # or as many as in evaluation.
    (["MoE2D.dropless_inference = False"], 2.0)])
def test_slots_where_the_model_is_used(bindings, slots):
  made = planning.make(configured(*bindings))
  mixture, = made.mixtures
  assert mixture.slots_per_token_in_use == slots
  assert f"and {slots:.3g} in scoring" in made.text()


def test_microbatches_repeat_the_model_but_not_the_optimizer():
  # Groups of the same size in both.
  sizes = "MoE2D.group_size = 32"
  setting = ("serialize_num_microbatches.tokens_per_microbatch_per_replica = "
             f"{LENGTH}")
  whole, parts = (costs.count(step.lower(configured(sizes, *more)))
                  for more in ([], [setting]))
  assert (whole.microbatches, parts.microbatches) == (1, 2)
  assert parts.tokens == whole.tokens
  # What does not depend on the batch, such as the attention's biases for
  # distances, is computed again for every part.
  assert whole.flops < parts.flops < 1.1 * whole.flops
  assert parts.activation_bytes < 0.7 * whole.activation_bytes
  once, twice = ({(t.kind, t.axes): t.count for t in made.traffic}
                 for made in (whole, parts))
  for axis in ("outer", "batch"):
    key = "all-to-all", (axis,)
    assert twice[key] == 2 * once[key]
  # Gradients are added up before they are reduced.
  key = "all-reduce", ("batch", "outer")
  assert twice.get(key, 0) < 2 * once.get(key, 1)


def sized(x, y, s, c, t, d, **hparams):
  """(levels, hparams) of two levels of these sizes."""
  hparams = mtf_moe.MoeHparams(moe_num_experts=(x, y), **hparams)
  batch = [mtf.Dimension("outer_batch", 1), mtf.Dimension("batch", 1)]
  outer, inner = levels.size(
      batch, mtf.Dimension("length", 1), hparams, True,
      mesh_split.MeshSplit(None, None))
  return [
      dataclasses.replace(
          level, group_size=mtf.Dimension(level.group_size.name, group),
          capacity=mtf.Dimension(level.capacity.name, capacity))
      for level, group, capacity in ((outer, s, c), (inner, t, d))], hparams


def test_balanced_with_room_for_all():
  """Policy "all": of the preferred group of experts two, of the other one."""
  balanced = mixtures.balanced(
      *sized(x=4, y=3, s=32, c=32, t=32, d=32, moe_second_policy_train="all"))
  assert balanced.lost_tokens == 0
  assert balanced.experts_per_token == 3.0
  # Of 4 buffers of 32 slots for 32 tokens at level one, each is a group, and
  # has 3 buffers of 32 slots at level two.
  assert balanced.empty_slots == pytest.approx(1 - 3 * 32 / (4 * 3 * 32))


def test_balanced_where_tokens_overflow():
  """One choice of two, a slot each for half of the tokens: by the binomial."""
  size = 16
  balanced = mixtures.balanced(
      *sized(x=2, y=1, s=size, c=size // 2, t=size // 2, d=size // 2,
             moe_second_policy_train="none"))
  expected = 2 / size * sum(
      math.comb(size, n) / 2 ** size * (n - size // 2)
      for n in range(size // 2, size + 1))
  # 16 groups of 16 tokens: twice the standard error of such a share.
  assert balanced.lost_tokens == pytest.approx(expected, abs=0.04)
  assert balanced.experts_per_token == pytest.approx(1 - balanced.lost_tokens)
  assert balanced.empty_slots == pytest.approx(balanced.lost_tokens)


CANONICAL = "outer_batch:outer,batch:batch,expert_x:batch,expert_y:outer"


@pytest.mark.parametrize("bindings, kwargs, said", [
    ([], {"layout_rules": "outer_batch:outer,batch:batch,expert_x:batch"},
     r"no experts over mesh dimension 'outer': all 2 cores .*"
     r"Add expert_y:outer"),
    ([], {"layout_rules": "outer_batch:outer,batch:batch"},
     r"mesh dimension 'batch': all 2 cores"),
    ([], {"layout_rules": "batch:batch,expert_x:outer"},
     r"batch over 'batch' and expert_x over 'outer'.*expert_x:batch"),
    ([], {"layout_rules": CANONICAL + ",experts:batch"},
     r"has experts:batch, and the model has no dimension 'experts'"),
    (["MoE2D.min_expert_capacity = 60"], {},
     r"first level have 3\.75 times.*min_expert_capacity = 60"),
    (["MoE2D.group_size = 256"], {},
     r"groups of the first level have 64 tokens.*MoE2D\.group_size = 256"),
    (["MoE2D.min_expert_capacity = 12"], {},
     r"decoding 8 sequences .* groups of 4 tokens.*12 slots each"),
    (["MoE2D.capacity_factor_train = 0.5"], {}, r"loses \d+% of the tokens"),
    (["MoE2D.capacity_factor_train = 3.9",
      "MoE2D.capacity_factor_second_level = 1.9"], {},
     r"leaves [5-9]\d% of the experts' slots empty"),
])
def test_findings(bindings, kwargs, said):
  findings = planning.make(configured(*bindings, **kwargs)).findings
  assert any(re.search(said, finding) for finding in findings), findings


THREE_LEVELS = [
    "transformer.make_layer_stack.layers = "
    "[@transformer_layers.SelfAttention, @mtf_moe.MoE]",
    "MoE.levels = [4, 2, 2]", "MoE.group_size = 64", "MoE.summaries = False"]
THREE_AXES = "outer:2,batch:2,model:2"


def test_three_levels():
  """The third has no batch of its own: its groups are cut from all there is."""
  layout = ("outer_batch:outer,batch:batch,"
            "expert_1:batch,expert_2:outer,expert_3:model")
  made = planning.make(configured(
      *THREE_LEVELS, mesh_shape=THREE_AXES, layout_rules=layout))
  mixture, = made.mixtures
  assert [level.name for level in mixture.levels] == [
      "level_1", "level_2", "level_3"]
  assert [level.experts for level in mixture.levels] == [4, 2, 2]
  # 256 tokens of two outer batches, 1.25 slots a token; groups of 64, or of
  # what two slices have: 20 slots of 4 times 64; of 2, each 40, once more.
  first, second, third = mixture.levels
  assert (first.groups, first.group_size, first.capacity) == (4, 64, 20)
  assert second.groups * second.group_size == 4 * 20
  assert third.groups * third.group_size == second.groups * second.capacity
  assert mixture.slots_per_token == pytest.approx(1.25)
  assert mixture.num_experts == 16 and made.findings == []
  # Experts of the third level are cut by a slice, and come back by an
  # all-concat over the third axis; the other two have all-to-alls.
  kinds = {(t.kind, t.axes) for t in made.costs.traffic}
  assert {("all-to-all", ("outer",)), ("all-to-all", ("batch",))} <= kinds
  assert not any(kind == "all-to-all" and "model" in axes
                 for kind, axes in kinds)


@pytest.mark.parametrize("layout, said", [
    ("outer_batch:outer,batch:batch,expert_1:batch,expert_2:outer",
     r"no experts over mesh dimension 'model': .*Add expert_3:model"),
    ("outer_batch:outer,batch:batch,expert_1:model,expert_2:outer,"
     "expert_3:batch", r"expert_1 over 'model'.* the first level gathers .*"
     r"Write expert_1:batch")])
def test_findings_of_three_levels(layout, said):
  findings = planning.make(configured(
      *THREE_LEVELS, mesh_shape=THREE_AXES, layout_rules=layout)).findings
  assert any(re.search(said, finding) for finding in findings), findings


def test_layers_in_scopes_are_what_they_are():
  """A plan has the sizes of the layer that was built, and names it so."""
  made = planning.make(configured(
      "transformer.make_layer_stack.layers = "
      "[@wide/mtf_moe.MoE2D, @mtf_moe.MoE2D]",
      "wide/MoE2D.expert_x = 8", "wide/MoE2D.min_expert_capacity = 60"))
  wide, usual = made.mixtures
  assert [level.experts for level in wide.levels] == [8, Y]
  assert [level.experts for level in usual.levels] == [X, Y]
  assert any("wide/MoE2D.min_expert_capacity = 60" in finding
             for finding in made.findings)
  assert not any(re.search(r"(?<!wide/)MoE2D.min_expert_capacity", finding)
                 for finding in made.findings)


def test_groups_larger_than_asked_for_are_said():
  """128 tokens at 63 are the two groups that two slices need."""
  made = planning.make(configured("MoE2D.group_size = 63"))
  outer = made.mixtures[0].levels[0]
  assert (outer.group_size, outer.asked_group_size) == (64, 63)
  assert re.search(r"outer +top_2 +\d+ +64 \(asked for: 63\)", made.text())
  assert not any("groups" in finding for finding in made.findings)


def test_nothing_is_wrong_with_the_canonical_layout(plan):
  assert plan.findings == []


def test_suggestions():
  configured()
  plans = planning.suggest(4)
  assert {p.mesh_shape for p in plans} == {
      "outer:1,batch:4", "outer:2,batch:2"}  # Y = 2 is not cut into 4.
  sent = [p.costs.sent_bytes for p in plans]
  assert sent == sorted(sent)
  with pytest.raises(ValueError, match=r"no mesh of 5 cores.*\n.*outer:1,batch:"
                     r"5: .*multiple of 5"):
    planning.suggest(5)


def main(*arguments, bindings=()):
  """Runs the program in this process."""
  arguments = [
      "program", *[f"--gin_file={file}" for file in FILES],
      *[f"--gin_param={line}" for line in [*SIZES[:-2], *bindings]],
      *arguments]
  if "model_dir" in flags.FLAGS:  # Of mtf_moe.train, in the same process.
    arguments.append("--model_dir=unused")
  gin.clear_config()
  with flagsaver.flagsaver():
    flags.FLAGS(arguments)
    try:
      program.main(arguments[:1])
    finally:
      flags.FLAGS.unparse_flags()


def test_command_line(capsys):
  main("--json")
  printed = json.loads(capsys.readouterr().out)
  assert printed["costs"]["cores"] == 4 and printed["findings"] == []
  assert printed["mixtures"][0]["levels"][0]["capacity"] == SLOTS_X
  main("--mesh_shape=outer:1,batch:2",
       bindings=["tpu_estimator_model_fn.outer_batch_size = 1"])
  text = capsys.readouterr().out
  assert "mesh outer:1,batch:2: 2 cores" in text and "all-to-all" in text
  main("--suggest")
  assert re.search(r"\n1 +outer:\d,batch:\d", capsys.readouterr().out)


def test_experts_in_attention(capsys):
  """mesh_tensorflow's layer makes one that takes what gin has for MoE1D."""
  main("--json", bindings=[
      "transformer.make_layer_stack.layers = "
      "[@transformer_layers.ExpertsSelfAttention, @mtf_moe.MoE2D]",
      "ExpertsSelfAttention.shared_kv = True",
      "ExpertsSelfAttention.num_experts = 4",
      "ExpertsSelfAttention.hidden_size = 8"])
  found = json.loads(capsys.readouterr().out)["mixtures"]
  assert [len(mixture["levels"]) for mixture in found] == [1, 2]


@pytest.mark.parametrize("arguments, bindings, said", [
    (["--mesh_shape=outer=2"], [], r"run.mesh_shape = 'outer=2' cannot be"),
    (["--layout_rules=batch->batch"], [], r"run.layout_rules = 'batch->batch'"),
    (["--mesh_shape=outer:2,batch:16"], [],
     r"run.batch_size .*size 4.*multiple of 16"),
    (["--layout_rules=batch:batch,expert_z:batch"], [],
     r"expert_z:batch, and the model has no dimension 'expert_z': remove"),
    ([], ["MoE2D.expert_x = 3"], r"MoE2D.expert_x .*multiple of 2"),
    ([], ["run.sequence_length = None"], r"sequence_length is not set"),
])
def test_mistakes(arguments, bindings, said, capsys):
  with pytest.raises(SystemExit, match=said):
    main(*arguments, bindings=bindings)
  assert not capsys.readouterr().out
