"""Random cases, for hypothesis."""

from hypothesis import strategies as st
import tensorflow.compat.v1 as tf

from tests import harness
from tests.oracle import case as case_lib

# Building a graph takes the longer the larger the mesh is, up to ten times: few
# of the cases have a large one.
MESHES = [(1, 1)] * 50 + [(1, 2), (2, 1)] * 2 + [(2, 2)] * 2 + [(1, 4), (2, 4)]
# In as many places: a seed whose mesh is small has the same case with both.
SMALL_MESHES = MESHES[:55] + [(1, 1)] * 3
_LAYOUTS = (
    harness.CANONICAL_LAYOUT,
    "batch:batch,expert_x:batch,expert_y:outer",
    "outer_batch:outer,batch:batch",
    "batch:batch,expert_x:batch,expert_hidden:outer",
)
_MOST_TOKENS = 64


@st.composite
def cases(draw, meshes=SMALL_MESHES):
  """Cases of all kinds.

  They come from a generator of which hypothesis only draws the seed: left to
  itself, it makes many of the cases by changing little in the one before.
  """
  rng = draw(st.randoms(use_true_random=True))
  rows, columns = mesh = rng.choice(meshes)
  layout = rng.choice(_LAYOUTS) if mesh != (1, 1) else _LAYOUTS[0]
  # Group sizes matter most where they do not divide the tokens: between one and
  # two groups of them, and prime numbers.
  splits_outer = "outer_batch" in layout and rows > 1
  batch = columns * rng.randint(1, 3)
  outer = rows * rng.randint(1, 2)
  longest = max(1, _MOST_TOKENS // (outer * batch))
  length = rng.choice(
      [rng.randint(1, longest)] * 4 + [_prime_up_to(longest)])
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
      group_size=rng.choice([
          rng.randint(1, 40), rng.randint(batch * length // 2 + 1,
                                          batch * length)]),
      min_capacity=rng.choice([1, 1, 2, 4, 20]),
      factors=tuple(rng.choice(
          [0.25, 0.5, 1.0, 1.25, 2.0, 4.0]) for _ in range(3)),
      second_place_loss=rng.random() < 0.5,
      loss_coef=rng.choice([0.01, 0.1, 1.0]),
      z_loss=rng.choice([None, 0.01, 0.1]),
      num_microbatches=rng.choice([None, 1, 4]),
      router=rng.choice(["usual"] * 4 + list(case_lib.ROUTERS)),
      seed=rng.randint(0, 2 ** 32 - 1))


def _prime_up_to(limit):
  """The largest prime up to the limit, or 1."""
  return next(n for n in range(limit, 0, -1)
              if all(n % divisor for divisor in range(2, n)))
