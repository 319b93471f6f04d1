"""Runs the programs of all cores together, on the machine at hand."""

from collections.abc import Mapping
import dataclasses

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.simd import expansion
from mtf_moe.simd.program import Program


@dataclasses.dataclass(frozen=True)
class Gathered:
  """A tensor that the cores hold slices of.

  Attributes:
    value: the whole, an array.
    spread: the largest difference between cores that hold the same slice;
      anything but 0.0 is a mistake in the program.
    slices: what each core holds, by physical core.
  """

  value: np.ndarray
  spread: float
  slices: tuple[np.ndarray, ...]


class Cores:
  """All cores of a `Program`, from their first values on; a context manager.

      with simd.Cores(program) as cores:
        cores.load(weights)
        loss = cores.step({"inputs": inputs})["loss"].value
        weights = cores.variables()
  """

  def __init__(self, program: Program, float32_alltoall: bool = True):
    """Prepares the graph.

    Args:
      program: the Program.
      float32_alltoall: see `expansion.expand`.
    """
    self._program = program
    self._graph = tf.Graph()
    with self._graph.as_default():
      tf.import_graph_def(
          expansion.expand(program.graph_def, float32_alltoall), name="")
    # The graph runs as it is: an optimizer would take longer than it saves,
    # and may change the last bits.
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    self._session = tf.Session(graph=self._graph, config=config)

  def __enter__(self):
    self._session.run(self._program.initializer)
    self._session.run(self._program.copy_masters_to_slices)
    return self

  def __exit__(self, *unused_exception):
    self._session.close()

  def load(self, values: Mapping[str, np.ndarray]):
    """Gives variables their values, as restoring a checkpoint does.

    Args:
      values: arrays, by the variables' names. Others keep what they have.

    Raises:
      ValueError: if there is no variable of that name.
    """
    variables = self._program.variables
    self._copy_to_masters()
    for name, value in values.items():
      variable = variables[_known("variable", name, variables)]
      self._session.run(
          variable.initializer, {variable.initial_value: value})
    self._session.run(self._program.copy_masters_to_slices)

  def step(self, feeds: Mapping[str, np.ndarray], update: bool = True
           ) -> dict[str, Gathered]:
    """Runs the program once.

    Args:
      feeds: whole arrays, by the inputs' names.
      update: a boolean, whether to update variables and the global step.

    Returns:
      the outputs, from before the update, by name

    Raises:
      ValueError: if an input is missing, unknown, or of another shape.
    """
    program = self._program
    cores = range(program.slicing.num_cores)
    fetches = {
        name: [expansion.core_name(core, output.tensor) for core in cores]
        for name, output in program.outputs.items()}
    updates = [
        expansion.core_name(core, program.update) for core in cores if update]
    values, _ = self._session.run([fetches, updates], self._fed(feeds))
    if update:
      self._session.run(program.next_step)
    return {name: self._gathered(slices, program.outputs[name].shape)
            for name, slices in values.items()}

  def variables(self) -> dict[str, np.ndarray]:
    """The values of all variables, whole, by name, as a checkpoint has them."""
    self._copy_to_masters()
    return self._session.run({
        name: variable.value
        for name, variable in self._program.variables.items()})

  def slices(self) -> dict[str, Gathered]:
    """What the cores hold of each mtf variable, by its name."""
    program = self._program
    values = self._session.run(
        {name: list(slices.values) for name, slices in program.slices.items()})
    return {name: self._gathered(slices, program.slices[name].shape)
            for name, slices in values.items()}

  def _copy_to_masters(self):
    self._session.run(self._program.copy_slices_to_masters)

  def _fed(self, feeds):
    inputs = self._program.inputs
    for name in feeds:
      _known("input", name, inputs)
    for name in inputs:
      _known("input", name, feeds)
    return {
        placeholder: part
        for name, source in inputs.items()
        for placeholder, part in zip(
            source.placeholders,
            self._program.slicing.cut(feeds[name], source.shape))}

  def _gathered(self, slices, shape):
    slicing = self._program.slicing
    return Gathered(slicing.join(slices, shape),
                    slicing.spread(slices, shape), tuple(slices))


def _known(kind, name, names):
  """The name, if it is among the names."""
  if name not in names:
    raise ValueError(
        f"There is no {kind} {name!r} among: {', '.join(sorted(names))}. Pass "
        f"each {kind} under the name that the model gives it.")
  return name
