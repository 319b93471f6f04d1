"""What --compile_for says, of mistakes and of what was compiled."""

import collections
import importlib.util
import json

import pytest

from mtf_moe.plan import compiled
from mtf_moe.plan import costs
from mtf_moe.plan import hlo
from mtf_moe.plan import step
from mtf_moe.run.configured_model import ConfiguredModel
from tests import gin_config
from tests.plan import plan_test

GIB = 2 ** 30
TARGET = compiled.Target("v5e:2x2", "TPU v5 lite", 4, 16 * GIB)
KEPT = [hlo.Kept("all-to-all", ("batch",), 3, 2 ** 20, False, 0),
        hlo.Kept("all-to-all", ("batch",), 1, 2 ** 20, True, 5),
        hlo.Kept("all-reduce", ("outer", "batch"), 1, 2 ** 19, True, 0)]


def memory(temporaries):
  """Of 8 GiB without temporaries."""
  return compiled.Memory(
      arguments=6 * GIB, outputs=5 * GIB, aliased=4 * GIB,
      temporaries=temporaries, program=GIB, peak=7 * GIB)


def of(temporaries):
  return compiled.Compiled(TARGET, 12.3, memory(temporaries), 2e12, GIB, KEPT)


def test_what_fits():
  fits = of(8 * GIB)
  assert fits.memory.total == 16 * GIB
  assert fits.findings() == []
  rows = [line.split() for line in fits.text().splitlines()]
  assert ["all-to-all", "batch", "4", "4.0", "1", "5"] in rows
  assert ["all-reduce", "outer,", "batch", "1", "0.5", "1", "0"] in rows
  assert ["altogether", "16,384.0"] in rows


@pytest.mark.parametrize("result", [
    of(8 * GIB + 1),
    compiled.Refused(TARGET, 1.0, "17.00G exceeds available HBM (15.75G)")])
def test_what_does_not_fit_is_said_with_what_to_change(result):
  finding, = result.findings()
  assert "does not fit" in finding
  assert "tokens_per_microbatch_per_replica" in finding
  if isinstance(result, compiled.Refused):
    assert "17.00G exceeds" in finding
    assert "does not fit" in result.text()


@pytest.mark.parametrize("missing", [["libtpu"], ["jax", "libtpu"]])
def test_without_the_compiler(missing, monkeypatch, capsys):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
      importlib.util, "find_spec",
      lambda name: None if name in missing else (
          name if name in ("jax", "libtpu") else find_spec(name)))
  with pytest.raises(SystemExit) as ended:
    plan_test.main("--compile_for=v5e:2x2")
  assert str(ended.value) == (
      f"mtf_moe.plan: --compile_for needs {' and '.join(missing)}, not "
      'installed here: pip install "mtf_moe[tpu]", with Python 3.12 or a later '
      "one.")
  assert not capsys.readouterr().out


def test_one_mesh_at_a_time():
  with pytest.raises(SystemExit, match="--suggest ranks many meshes"):
    plan_test.main("--compile_for=v5e:2x2", "--suggest")


@pytest.fixture
def compiler():
  pytest.importorskip("jax")
  pytest.importorskip(
      "libtpu", reason='the TPU\'s compiler comes with "mtf_moe[tpu]"')


@pytest.mark.parametrize("topology, said", [
    ("v9z:2x2", r"'v9z:2x2' is no slice of a TPU that libtpu knows \(.*v9z\): "
     r"write the chip, .* such as v5e:2x2"),
    ("v5e:3x3", r"'v5e:3x3' is no slice .* not divisible"),
    ("large", r"'large' is no slice .* invalid"),
    ("v5e:4x4", r"--compile_for=v5e:4x4 has 16 cores, and run.mesh_shape = "
     r"'outer:2,batch:2' has 4: name a slice of 4, or give a mesh")])
def test_mistakes(topology, said, compiler, capsys):
  with pytest.raises(SystemExit, match=f"^mtf_moe.plan: .*{said}"):
    plan_test.main(f"--compile_for={topology}")
  captured = capsys.readouterr()
  assert not captured.out and "compiling" not in captured.err


@pytest.mark.slow
def test_a_step_is_compiled(compiler, capsys):
  """Its all-to-alls are the plan's; what it holds is more than its variables.
  """
  plan_test.main("--compile_for=v5e:2x2", "--json")
  captured = capsys.readouterr()
  assert "compiling for v5e:2x2, 4 cores; this takes minutes" in captured.err
  result = json.loads(captured.out)["compiled"]
  assert result["target"]["chip"] == "TPU v5 lite"
  assert 15 * GIB < result["target"]["hbm_bytes"] < 16 * GIB
  planned = costs.count(step.lower(plan_test.configured()))
  found = collections.Counter()
  for kept in result["collectives"]:
    if kept["kind"] == "all-to-all":
      found[tuple(kept["axes"])] += kept["times"]
  assert found == {t.axes: t.count for t in planned.traffic
                   if t.kind == "all-to-all"}
  assert result["memory"]["arguments"] > (
      planned.variable_bytes + planned.slot_bytes)
  assert result["flops"] > 0.5 * planned.flops_per_core


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["einsum", "index"])
def test_the_estimate_of_memory_is_near_the_compilers(dispatch, compiler):
  """Within a quarter: what is said of it in docs/tpu.md."""
  from mtf_moe.plan import compiling
  gin_config.parse(
      ["models/lm_small.gin", "meshes/tpu_2x2.gin", "data/bytes.gin"],
      ["batch_size = 64", "sequence_length = 256",
       f"MoE2D.dispatch = {dispatch!r}", "MoE2D.summaries = False",
       "run.perplexity_eval_steps = None"])
  model = ConfiguredModel.from_gin()
  result = compiling.compile_for(
      model, compiling.topology_for(model, "v5e:2x2"))
  estimate = costs.count(step.lower(model)).memory_bytes
  assert estimate == pytest.approx(result.memory.peak, rel=0.25)


@pytest.mark.slow
def test_a_step_that_is_too_large_is_refused_in_words(compiler, capsys):
  plan_test.main(
      "--compile_for=v5e:2x2",
      bindings=["MoE2D.hidden_size = 67108864", "num_layers = 1"])
  text = capsys.readouterr().out
  assert "not compiled for v5e:2x2 (TPU v5 lite, 4 cores): it does not" in text
  assert "exceeds available HBM (15.75G)" in text or "15.75G hbm" in text
