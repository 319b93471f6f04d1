"""The benchmark: it runs, and what can be derived by hand is right.

How long anything takes is not tested.
"""

import collections
import dataclasses
import importlib.util
import itertools
import json

from matplotlib import image
import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import step_stats_pb2

from benchmarking import contenders
from benchmarking import peers
from benchmarking import report
from benchmarking import settings
from benchmarking import traces
from scripts import benchmark
from scripts import reproduce

# 8 groups of 16 tokens; int(16 * 1.25 / 2) = 10 slots for each at 2 experts.
# These are 80 slots at each, in 5 groups of 16, with int(16 * 1.25 / 4) = 5
# slots at 4 experts.
TINY = settings.Setting(
    tokens=128, d_model=8, hidden=16, experts=(2, 4), group=16)
TINY_FLAGS = [
    "--tokens=128", "--d_model=8", "--hidden=16", "--experts=2x4",
    "--groups", "16", "--rounds=2"]


@pytest.fixture(autouse=True)
def resource_variables():
  """As in the script, which must not change other tests."""
  enabled = tf.resource_variables_enabled()
  verbosity = tf.logging.get_verbosity()
  tf.enable_resource_variables()
  yield
  tf.logging.set_verbosity(verbosity)
  if not enabled:
    tf.disable_resource_variables()


def steps(name, setting, mode, number=1):
  """What the first steps of a contender return."""
  contender = contenders.Contender(name, setting, mode)
  try:
    return [contender.step() for _ in range(number)]
  finally:
    contender.close()


def result(samples, group=16, mode="training"):
  return report.Result(
      dataclasses.replace(TINY, group=group), mode, samples,
      {"bound": 1.0}, (0.5, 0.7))


def test_shapes_of_a_setting():
  TINY.check()
  assert TINY.group_sizes == (16, 16)
  assert [dim.size for dim in TINY.expert_input_dims] == [4, 2, 5, 5, 8]
  assert TINY.slots == 4 * 2 * 5 * 5
  assert TINY.dense_hidden == 200 * 16 // 128


def test_shapes_of_a_setting_on_a_mesh():
  setting = dataclasses.replace(TINY, mesh=(2, 1))
  setting.check()
  assert [dim.size for dim in setting.token_dims] == [2, 1, 64]
  # 40 slots for each of two slices have groups of 10, and 4 is the minimum.
  assert setting.group_sizes == (16, 10)
  assert [dim.size for dim in setting.expert_input_dims] == [4, 2, 8, 4, 8]


def test_groups_can_be_larger_than_asked_for():
  setting = dataclasses.replace(TINY, experts=(2, 2), group=32)
  # 4 groups of 32, with 20 slots: 80 are two groups of 40.
  assert setting.group_sizes == (32, 40)


def test_the_dense_layer_has_the_products_of_the_experts():
  def einsums(name):
    dims = TINY.expert_input_dims if name == "bound" else [
        *TINY.token_dims, TINY.model_dim]
    return reproduce.count(
        lambda mesh: contenders.BUILDERS[name](
            TINY, mtf.zeros(mesh, mtf.Shape(dims))), "outer:1,inner:1", "")

  products = 2 * (200 * 8 * 16)
  assert einsums("bound").einsum == einsums("dense").einsum == products


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1)])
def test_the_three_layers_compute_the_same(mesh):
  setting = dataclasses.replace(TINY, mesh=mesh)
  reference, einsum, index = (
      steps(name, setting, "training")[0]
      for name in ("reference", "einsum", "index"))
  # One of each slice of the outputs, the loss, and the gradient.
  assert [len(values) for values in reference] == [mesh[0] * mesh[1]] * 3
  for other in (einsum, index):
    for values, expected in zip(other, reference, strict=True):
      assert values == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_training_changes_the_variables_and_forward_does_not(monkeypatch):
  monkeypatch.setattr(settings, "LEARNING_RATE", 0.1)
  first, second = steps("index", TINY, "forward", 2)
  assert first == second
  same, changed = steps("index", TINY, "training", 2)
  assert same[:2] == first
  assert changed[0] != same[0]


@pytest.mark.parametrize("n", range(1, 7))
def test_orders_put_each_contender_behind_each_other_equally_often(n):
  sequence = benchmark.orders(n)
  assert all(sorted(order) == list(range(n)) for order in sequence)
  follows = collections.Counter(
      pair for order in sequence for pair in itertools.pairwise(order))
  times = 1 + n % 2
  assert follows == dict.fromkeys(itertools.permutations(range(n), 2), times)


def test_samples_are_cpu_time_without_the_first_rounds(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr("time.process_time", lambda: clock[0])

  def step(milliseconds):
    remaining = iter(milliseconds)

    def run():
      clock[0] += next(remaining) / 1e3

    return run

  samples = benchmark.sample(
      {"one": step([90, 80, 1, 2]), "other": step([70, 60, 3, 4])}, range(4))
  assert samples["one"] == pytest.approx([1, 2])
  assert samples["other"] == pytest.approx([3, 4])


def test_ratios_of_medians_and_within_rounds():
  assert report.quartiles([4, 1, 2, 3, 5]) == (2, 3, 4)
  one = result({"index": [6, 4, 20, 40, 10], "bound": [2, 2, 5, 4, 5]})
  # Medians 10 and 4; the ratios are 3, 2, 4, 10 and 2.
  assert one.ratio("index", "bound") == (2, 2.5, 4)


def test_the_report_has_the_ratios_of_what_ran():
  text = report.text({"TensorFlow": "2.x"}, [
      result({"index": [6, 4, 20, 40, 10], "bound": [2, 2, 5, 4, 5]})])
  assert text.startswith(
      "# Benchmark\n\nTensorFlow 2.x; load average 0.5 at the start, 0.7 at")
  assert "10 (6-20) | 4 (2-5)" in text
  assert "2.50 (2.00-4.00)" in text
  assert "reference/index " not in text.partition("## Sizes")[0]
  assert "| 4 2 5 5 8 " in text


def test_the_plot_is_of_ratios_to_the_bound_over_the_group_size():
  drawing = report.plot([
      result({"index": [8], "bound": [2]}, group=32),
      result({"index": [6], "bound": [2]}, group=16),
      result({"index": [5], "bound": [4]}, group=16, mode="forward")])
  training, forward = drawing.axes
  index, bound = training.lines
  assert list(index.get_xdata()) == [16, 32]
  assert list(index.get_ydata()) == [3, 4]
  assert list(bound.get_ydata()) == [1, 1]
  assert list(forward.lines[0].get_ydata()) == [1.25]
  assert training.get_xscale() == training.get_yscale() == "log"


def step_stats(*nodes):
  """StepStats of (label, start and end in microseconds, bytes, address)."""
  stats = step_stats_pb2.StepStats()
  device = stats.dev_stats.add()
  for label, start, end, size, address in nodes:
    node = device.node_stats.add(
        node_name=label.partition(" = ")[0], timeline_label=label,
        all_start_micros=start, all_end_rel_micros=end - start,
        op_start_rel_nanos=0, op_end_rel_nanos=1000 * (end - start))
    place = node.output.add().tensor_description.allocation_description
    place.requested_bytes, place.ptr = size, address
  return stats


def test_time_by_type_of_operation():
  stats = step_stats(
      ("a = Mul(x, y)", 0, 10, 0, 0), ("b = Sum(a)", 10, 13, 0, 0),
      ("c = Mul(a, b)", 11, 15, 0, 0), ("no label", 11, 12, 0, 0))
  assert traces.time_by_type(stats) == {
      "Mul": pytest.approx((0.014, 2)), "Sum": pytest.approx((0.003, 1)),
      "other": pytest.approx((0.001, 1))}
  table = benchmark.trace_table([stats, stats], num_types=2).splitlines()
  assert [line.split() for line in table[2:]] == [
      ["Mul", "2", "0.01", "77.8%"], ["Sum", "1", "0.00", "16.7%"]]


def test_peak_memory_counts_a_place_once_while_its_results_are_used():
  stats = step_stats(
      ("a = Mul(x)", 0, 10, 4_000_000, 1),
      ("b = Reshape(a)", 10, 20, 4_000_000, 1),  # In the place of a.
      ("c = Sum(b)", 30, 40, 1_000_000, 2),  # Both end at 40.
      ("d = Mul(c)", 40, 50, 2_000_000, 3),
      ("e = Mul(d)", 50, 60, 2_000_000, 1))
  assert traces.peak_megabytes(stats) == 4 + 1


def test_settings_of_a_command_line(tmp_path):
  output = f"--output={tmp_path}"
  _, chosen = benchmark.parse([output])
  assert [s.group for s in chosen] == [256, 512, 1024, 2048]
  assert {(s.tokens, s.experts, s.mesh) for s in chosen} == {
      (4096, (4, 4), (1, 1))}
  _, chosen = benchmark.parse([
      output, "--tokens=64", "--experts=2x4", "--groups", "8", "16", "8",
      "--meshes", "1x1", "4x1"])
  assert [(s.tokens, s.experts, s.group, s.mesh) for s in chosen] == [
      (64, (2, 4), group, mesh)
      for mesh in ((1, 1), (4, 1)) for group in (8, 16)]
  flags, chosen = benchmark.parse([output, "--preset=issue", "--modes=forward"])
  assert chosen == settings.PRESETS["issue"]
  assert flags.modes == ["forward"]


@pytest.mark.parametrize("flags, message", [
    ("--tokens 0", "argument --tokens: '0' is not a positive integer"),
    ("--experts 4", "argument --experts: '4' is not two positive integers"),
    ("--meshes 2x-1", "argument --meshes: '2x-1' is not two positive integers"),
    ("--experts 3x4 --meshes 1x2", "make the first number a multiple of 2"),
    ("--tokens 129 --meshes 1x2", "--tokens 129 cannot be split over the 2"),
    ("--groups 512 48", "--groups 48 does not divide the 4096 tokens of a "
     "slice (--tokens 4096, --meshes 1x1): choose a size that does, such as "
     "32."),
    ("--preset issue --groups 48", "--preset issue decides on --groups as"),
    ("--contenders sparse", "invalid choice: 'sparse'"),
    ("--contenders lucidrains-flat", "pip install torch mixture-of-experts"),
    ("--trace dense --contenders index", "--trace dense is not among"),
    ("--output {file}/results", "is no folder that can be written to"),
])
def test_a_mistake_gets_one_line(flags, message, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  file = tmp_path / "file"
  file.touch()
  with pytest.raises(SystemExit) as stopped:
    benchmark.parse([f"--output={tmp_path}", *flags.format(file=file).split()])
  assert stopped.value.code == 2
  printed = capsys.readouterr().err
  assert message in printed
  assert printed.count("\n") == 1


def test_peers_have_no_mesh(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
  peers.check(["index", "lucidrains-flat"], [TINY])
  meshes = [TINY, dataclasses.replace(TINY, mesh=(1, 2))]
  peers.check(["index"], meshes)
  with pytest.raises(ValueError, match="lucidrains-flat has no mesh"):
    peers.check(["index", "lucidrains-flat"], meshes)


@pytest.mark.skipif(
    not importlib.util.find_spec("mixture_of_experts"),
    reason="mixture-of-experts is not installed")
@pytest.mark.parametrize("name", peers.CLASSES)
@pytest.mark.parametrize("mode", contenders.MODES)
def test_peers_run(name, mode):
  peer = peers.Peer(name, TINY, mode)
  peer.step()
  peer.step()
  peer.close()


def test_command_line(tmp_path, capsys):
  output = tmp_path / "new" / "results"
  benchmark.main([*TINY_FLAGS, f"--output={output}", "--trace=index"])
  printed = capsys.readouterr()
  table = (output / "benchmark.md").read_text()
  assert printed.out.endswith(table + "\n")
  assert f"{TINY}, training, index:\noperation" in printed.out
  assert "round 4 of 4" in printed.err
  width, height, _ = image.imread(output / "benchmark.png").shape
  assert width > 100 and height > 100

  written = json.loads((output / "benchmark.json").read_text())
  assert written["environment"]["TensorFlow"] == tf.__version__
  assert [r["mode"] for r in written["results"]] == ["forward", "training"]
  for one in written["results"]:
    assert one["setting"] == {**dataclasses.asdict(TINY),
                              "experts": [2, 4], "mesh": [1, 1],
                              "capacity_factors": [1.25, 1.25]}
    assert one["expert_inputs"] == [4, 2, 5, 5, 8]
    assert list(one["cpu_ms"]) == list(one["peak_mb"]) == list(
        benchmark.ORDINARY)
    for name in benchmark.ORDINARY:
      assert len(one["cpu_ms"][name]) == 2
      assert all(ms > 0 for ms in one["cpu_ms"][name])
      assert one["peak_mb"][name] > 0

  # Without the bound there is no plot, nor one that an earlier run left.
  benchmark.main([*TINY_FLAGS, f"--output={output}", "--contenders", "dense",
                  "--modes=forward"])
  assert not (output / "benchmark.png").exists()
