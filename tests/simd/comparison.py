"""Compares the SIMD program of a model with a placement mesh."""

import collections
import dataclasses

import numpy as np

from mtf_moe import simd
from tests.simd import placement


@dataclasses.dataclass(frozen=True)
class Run:
  """A model with all that it takes to run it.

  Attributes:
    model_fn: see `simd.build`, like the next three.
    mesh_shape: an input to mtf.convert_to_shape.
    layout: an input to mtf.convert_to_layout_rules.
    inputs: for each name, a tf.DType and a shape.
    feeds: arrays by name.
    weights: a function from a variable's name and shape to its first value.
    steps: the number of updates.
  """

  model_fn: object
  mesh_shape: str
  layout: str
  inputs: dict
  feeds: dict
  weights: object
  steps: int = 2

  def build(self, **options):
    return simd.build(
        self.model_fn, self.mesh_shape, self.layout, self.inputs, **options)

  def on_placement_mesh(self, impl_class=placement.PlacementMeshImpl):
    return placement.run(
        self.model_fn, self.mesh_shape, self.layout, self.inputs, self.feeds,
        self.first_value, self.steps, impl_class)

  def on_cores(self, program, float32_alltoall=True):
    """(outputs of each step, variables at the end, largest spread)."""
    with simd.Cores(program, float32_alltoall) as cores:
      cores.load({name: self.first_value(name, variable.shape)
                  for name, variable in program.variables.items()})
      steps = [cores.step(self.feeds) for _ in range(self.steps)]
      gathered = [g for step in steps for g in step.values()]
      gathered += cores.slices().values()
      values = [{name: g.value for name, g in step.items()} for step in steps]
      return values, cores.variables(), max(g.spread for g in gathered)

  def first_value(self, name, shape):
    """That of a weight; the optimizer's variables start from zero."""
    if "_slot_" in name or name == "global_step":
      return np.zeros(shape)
    return self.weights(name, list(shape))


def errors(actual, expected):
  """The largest error of each kind, relative to the largest element.

  Args:
    actual: (outputs of each step, variables, ...).
    expected: the same, of the other side.

  Returns:
    numbers by kind: "loss", "output", "input_gradient", "gradient", "variable"
  """
  found = collections.defaultdict(float)
  for kind, ours, theirs in _pairs(actual, expected):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max()
    found[kind] = max(found[kind], difference / (np.abs(theirs).max() or 1.0))
  return dict(found)


def _pairs(actual, expected):
  assert len(actual[0]) == len(expected[0])
  for ours, theirs in zip(actual[0], expected[0]):
    assert ours.keys() == theirs.keys()
    for name in ours:
      yield name.split()[0], ours[name], theirs[name]
  assert actual[1].keys() == expected[1].keys()
  for name in actual[1]:
    yield "variable", actual[1][name], expected[1][name]
