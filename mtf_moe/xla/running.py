"""Runs programs for given arrays. It imports no TensorFlow."""

from collections.abc import Iterator, Mapping
import time

import jax
import numpy as np

from mtf_moe.xla import devices


class Batches:
  """Arrays that are given to the inputs of a program, batch by batch."""

  def __init__(self, program: devices.OnDevices,
               arrays: Mapping[str, np.ndarray]):
    """Sees that they fit.

    Args:
      program: which has the inputs.
      arrays: by name; each is a batch, or has one in each row. What is none of
        an input is left out.

    Raises:
      ValueError: if one is missing, or has another shape.
    """
    self._program = program
    self._arrays = {}
    for name, part in program.manifest.arguments.items():
      if part.kind != "input":
        continue
      if name not in arrays:
        raise ValueError(
            f"The program has an input {name!r}, and the arrays given are "
            f"{sorted(arrays)}: give one of that name.")
      array = arrays[name]
      if array.shape == part.shape:
        array = array[np.newaxis]
      if array.shape[1:] != part.shape or not len(array):
        raise ValueError(
            f"{name!r} has the shape {list(part.shape or ())}, and was given "
            f"an array of {list(array.shape)}: give a batch, or some of them, "
            "one in each row.")
      self._arrays[name] = array

  def __len__(self):
    """How many there are; with none that is longer, the first comes again."""
    return max(map(len, self._arrays.values()), default=1)

  def __getitem__(self, number: int) -> dict[str, jax.Array]:
    """A batch on the devices; after the last, they come again."""
    return {name: self._program.put(name, array[number % len(array)])
            for name, array in self._arrays.items()}


def run(program: devices.OnDevices, batches: Batches, steps: int, every: int
        ) -> Iterator[tuple[dict[str, jax.Array], float]]:
  """Runs steps, and waits for the devices now and then.

  Args:
    program: what to run, from the step that it is at.
    batches: its inputs, of which each step takes that of its number.
    steps: how many.
    every: after how many to wait. Until then, the devices never do.

  Yields:
    the outputs of the last step until then, and the seconds a step since the
    time before.
  """
  for start in range(0, steps, every):
    number = min(every, steps - start)
    began = time.perf_counter()
    for _ in range(number):
      outputs = program.step(batches[program.global_step])
    jax.block_until_ready(outputs)
    yield outputs, (time.perf_counter() - began) / number


def means(program: devices.OnDevices, batches: Batches) -> dict[str, float]:
  """The means of the outputs that are numbers, over all batches once.

  Args:
    program: nothing in it changes.
    batches: its inputs.

  Returns:
    the means, by name
  """
  found = [program.step(batches[number], update=False)
           for number in range(len(batches))]
  return {name: float(np.mean([float(outputs[name]) for outputs in found]))
          for name, value in found[0].items() if value.ndim == 0}
