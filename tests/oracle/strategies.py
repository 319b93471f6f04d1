"""Random cases, for hypothesis."""

import dataclasses

from hypothesis import strategies as st
import tensorflow.compat.v1 as tf

from tests import harness
from tests.oracle import case as case_lib
from tests.oracle import comparison

# Building a graph takes the longer the larger the mesh is, up to ten times: few
# of the cases have a large one.
_MESHES = [(1, 1)] * 50 + [(1, 2), (2, 1)] * 2 + [(2, 2)] * 2 + [(1, 4), (2, 4)]
_LAYOUTS = (
    harness.CANONICAL_LAYOUT,
    "batch:batch,expert_x:batch,expert_y:outer",
    "outer_batch:outer,batch:batch",
    "batch:batch,expert_x:batch,expert_hidden:outer",
)
_MOST_TOKENS = 64


@st.composite
def cases(draw):
  """Cases in which the reference works and keeps its bound on groups."""
  case = draw(any_cases())
  if case.z_loss is not None and not _reference_has_z_loss(case):
    case = dataclasses.replace(case, z_loss=None)
  return _with_bound(case)


@st.composite
def any_cases(draw, meshes=_MESHES):
  """Cases, whether the reference works or not.

  They come from a generator of which hypothesis only draws the seed: left to
  itself, it makes many of the cases by changing little in the one before.
  """
  rng = draw(st.randoms(use_true_random=True))
  rows, columns = mesh = rng.choice(meshes)
  layout = rng.choice(_LAYOUTS) if mesh != (1, 1) else _LAYOUTS[0]
  splits_outer = "outer_batch" in layout and rows > 1
  batch = columns * rng.randint(1, 3)
  outer = rows * rng.randint(1, 2)
  length = rng.randint(1, max(1, _MOST_TOKENS // (outer * batch)))
  has_outer = splits_outer or rng.random() < 0.5
  x, y = rng.choice(
      [(1, 2), (2, 1), (2, 2)] if mesh != (1, 1) else
      [(4, 2), (2, 2), (3, 5), (1, 4), (4, 1), (8, 8), (5, 3)])
  return case_lib.Case(
      shape=(outer, batch, length) if has_outer else (batch, length),
      depth=rng.choice([3, 4, 6]),
      output_depth=rng.choice([None, None, 5]),
      experts=(columns * x, rows * y),
      mesh=mesh,
      layout=layout,
      dtype=rng.choice([tf.float32, tf.float32, tf.bfloat16]),
      train=rng.random() < 0.5,
      importance=rng.choice(
          ["absent", "ones", "zeros", "padding", "padding", "halves",
           "halves"]),
      importance_dims=tuple(rng.choice(
          [True, True, False]) for _ in range(3)),
      policy=rng.choice(["all", "none", "threshold", "random"]),
      threshold=rng.choice([0.0, 0.2, 0.35, 0.5, 1.0]),
      group_size=rng.randint(1, 40),
      min_capacity=rng.choice([1, 1, 2, 4, 20]),
      factors=tuple(rng.choice(
          [0.25, 0.5, 1.0, 1.25, 2.0, 4.0]) for _ in range(3)),
      second_place_loss=rng.random() < 0.5,
      loss_coef=rng.choice([0.01, 0.1, 1.0]),
      z_loss=rng.choice([None, 0.01, 0.1]),
      num_microbatches=rng.choice([None, 1, 4]),
      router=rng.choice(["usual"] * 4 + list(case_lib.ROUTERS)),
      seed=rng.randint(0, 2 ** 32 - 1))


def _with_bound(case):
  """The case, or one with the next group size where the reference keeps it."""
  return next(
      other for size in range(case.group_size, 10 ** 6)
      if comparison.keeps_its_bound(
          other := dataclasses.replace(case, group_size=size)))


def _reference_has_z_loss(case):
  """Whether the reference's z-loss is a number, at both levels.

  It needs a number of microbatches, and a token that counts.
  """
  if case.num_microbatches is None:
    return False
  return all(any(group.z_count for group in groups)
             for groups in comparison.run_loops(case).levels)
