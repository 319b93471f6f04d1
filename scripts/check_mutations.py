"""Breaks each rule of the layer's semantics, and sees that a test notices.

    python scripts/check_mutations.py [--only=RULE]

Every mutation changes a line or two in a copy of the package and runs the
tests that should fail there. A mutation that no test notices is an error. The
rules are those that numerical equality with mesh_tensorflow's layer hangs on:

   1 float32 gating           7 second-place loss     13 casts of the loss
   2 ties, gradient           8 microbatches          14 slot importance
   3 first choices            9 policies              15 capacities
   4 second mask             10 positions             16 contiguous groups
   5 normalization           11 dropping              17 whole groups a slice
   6 balancing loss          12 dispatch and combine
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

TOP_2 = "gating/top_2.py"
ROUTER = "gating/router.py"
BASE = "gating/base.py"
ROUTING = "gating/routing.py"
DENSE = "gating/dense.py"
POLICY = "gating/second_policy.py"
LOSSES = "gating/losses.py"

BY_HAND = ["tests/gating"]
GROUPING = ["tests/grouping_test.py"]
ORACLE = ["tests/oracle", "-k", "policies"]
SPECIAL = ["tests/oracle", "-k", "special"]
MESHES = ["tests/oracle", "-k", "meshes"]


@dataclasses.dataclass(frozen=True)
class Mutation:
  """One change and the tests that should notice it."""

  rule: int
  what: str
  file: str
  old: str
  new: str
  tests: list


MUTATIONS = [
    Mutation(1, "gates in bfloat16", ROUTER,
             "return mtf.softmax(self.logits, self.experts_dim)",
             "return mtf.to_float(mtf.to_bfloat16(mtf.softmax(\n"
             "        self.logits, self.experts_dim)))", ORACLE),
    Mutation(1, "a bias", BASE, "use_bias=False", "use_bias=True", ORACLE),
    Mutation(2, "ties to the highest index", TOP_2,
             "selection.likeliest(gates, x)",
             "selection.likeliest(gates + 1e-6 * mtf.range(gates.mesh, x, "
             "gates.dtype), x)", BY_HAND),
    Mutation(2, "no gradient through the first gate", TOP_2,
             "    gates_left = gates * (1.0 - mask_1)",
             "    gate_1 = mtf.stop_gradient(gate_1)\n"
             "    gates_left = gates * (1.0 - mask_1)", ORACLE),
    Mutation(3, "first mask at any importance", TOP_2,
             "mask_1 * scores.full, gate_1", "mask_1, gate_1", BY_HAND),
    Mutation(3, "first gate at any importance", TOP_2,
             "gate_1 * scores.full,", "gate_1,", BY_HAND),
    Mutation(3, "density proxy at any importance", TOP_2,
             "gates * scores.full)", "gates)", BY_HAND),
    Mutation(4, "second choices of padding", ROUTER,
             "self._where(mtf.greater, 0.0)", "self._where(mtf.greater, -1.0)",
             BY_HAND),
    Mutation(5, "gates not normalized", TOP_2,
             "gate_1 / total, gate_2 / total", "gate_1, gate_2", BY_HAND),
    Mutation(5, "normalized over the choices in use", TOP_2,
             "    return router.TokenChoice(",
             "    used = gate_1 + gate_2 * wanted_2\n"
             "    gate_1, gate_2 = gate_1 / used, gate_2 / used\n"
             "    return router.TokenChoice(", ORACLE),
    Mutation(6, "mean of the product", LOSSES,
             "mtf.reduce_mean(density * density_proxy)",
             "mtf.reduce_mean(mask * gates)", BY_HAND),
    Mutation(6, "not times the square of the experts", LOSSES,
             "experts_dim.size ** 2", "experts_dim.size", BY_HAND),
    Mutation(6, "unimportant tokens left out of the mean", TOP_2,
             "    total = gate_1",
             "    balance_loss /= mtf.square(mtf.reduce_mean(scores.full))\n"
             "    total = gate_1", BY_HAND),
    Mutation(7, "counts in full", TOP_2, "+= 0.5 *", "+= 1.0 *", BY_HAND),
    Mutation(7, "gates left not normalized", LOSSES,
             "return gates_left / (total + EPSILON)", "return gates_left",
             BY_HAND),
    Mutation(7, "proxy masked by importance", TOP_2,
             "losses.without_first_choice(gates_left, x)",
             "losses.without_first_choice(gates_left, x)"
             " * scores.full", BY_HAND),
    Mutation(8, "not divided by microbatches", BASE,
             "loss if loss is None else loss / num_microbatches", "loss",
             BY_HAND),
    Mutation(9, "at the threshold is enough", POLICY,
             "mtf.greater(gate, threshold)",
             "mtf.greater_equal(gate, threshold)", BY_HAND),
    Mutation(9, "drawn at the probability is enough", POLICY,
             "mtf.less(drawn", "mtf.less_equal(drawn", BY_HAND),
    Mutation(9, "no floor below the threshold", POLICY,
             "max(threshold, 1e-9)", "max(threshold, 1.0)", BY_HAND),
    Mutation(9, "one number for all tokens", POLICY,
             "mtf.random_uniform(gate.mesh, gate.shape)",
             "mtf.random_uniform(gate.mesh, mtf.Shape([]))", BY_HAND),
    Mutation(10, "inclusive count", ROUTING, "exclusive=True",
             "exclusive=False", BY_HAND),
    Mutation(10, "second choices not behind the first", ROUTING,
             "tf.cumsum(mask, axis=-1, exclusive=True)",
             "tf.concat([tf.cumsum(of_one, axis=-1, exclusive=True)\n"
             "       for of_one in tf.split(mask, k, axis=-1)], -1)", BY_HAND),
    Mutation(11, "one slot too many", ROUTING, "position < capacity",
             "position <= capacity", BY_HAND),
    Mutation(11, "the first weight takes the rest", TOP_2,
             "[gate_1, gate_2], [scores.full",
             "[gate_1 + gate_2 * (1.0 - wanted_2), gate_2], [scores.full",
             ORACLE),
    Mutation(12, "dispatch from the weights in float32", DENSE,
             "routed.dispatch_tensor(combine), combine",
             "mtf.cast(routed.dispatch_tensor(routed.combine_tensor("
             "routed.balance_loss.dtype)), inputs.dtype), combine", BY_HAND),
    Mutation(12, "a gate of zero holds no slot", TOP_2,
             "    return router.TokenChoice(",
             "    wanted_2 *= mtf.to_float(mtf.greater(gate_2, 0.0))\n"
             "    return router.TokenChoice(", BY_HAND),
    Mutation(12, "a gradient through dispatch", ROUTING,
             "mtf.cast(mtf.not_equal(combine_tensor, 0), combine_tensor.dtype)",
             "mtf.cast(mtf.not_equal(combine_tensor, 0), combine_tensor.dtype)"
             " + combine_tensor - mtf.stop_gradient(combine_tensor)", BY_HAND),
    Mutation(13, "losses added before they are cast", "layer.py",
             "hparams.moe_loss_coef * mtf.add_n(\n"
             "      [mtf.cast(routed.balance_loss, dtype) for routed in "
             "routings])",
             "mtf.cast(hparams.moe_loss_coef * mtf.add_n(\n"
             "      [routed.balance_loss for routed in routings]), dtype)",
             ORACLE),
    Mutation(14, "half is enough", ROUTING,
             "mtf.greater(weights, 0.5)",
             "mtf.greater_equal(weights, 0.5)", SPECIAL),
    Mutation(14, "from the weights in float32", "dispatch.py",
             "        self._combine_tensor, output_shape",
             "        self._routed.combine_tensor(tf.float32), output_shape",
             SPECIAL),
    Mutation(15, "rounded to the nearest", "grouping.py",
             "int(group_size * capacity_factor / num_experts)",
             "round(group_size * capacity_factor / num_experts)", GROUPING),
    Mutation(15, "the minimum no more than the group", "grouping.py",
             "max(min(group_size, even_share), min_capacity)",
             "min(group_size, max(even_share, min_capacity))", GROUPING),
    Mutation(15, "the first level's factor at the second", "levels.py",
             "one.capacity_factor(train)", "settings[0].capacity_factor(train)",
             ORACLE),
    Mutation(16, "groups of every n-th token", "layer.py",
             "tokens = mtf.reshape(inputs, token_dims + [m])",
             "tokens = mtf.transpose(mtf.reshape(inputs, [*token_dims[:-2], "
             "token_dims[-1], token_dims[-2], m]), token_dims + [m])",
             ORACLE),
    Mutation(17, "no group above the size asked for", "grouping.py",
             "max(1, n // max_group_size)", "-(-n // max_group_size)",
             GROUPING),
    Mutation(17, "groups at level one whatever the mesh", "levels.py",
             "one.group_size, mesh.ways(batch)",
             "one.group_size, mesh.ways(batch) if number else 1", MESHES),
    Mutation(17, "groups at level two whatever the mesh", "levels.py",
             "one.group_size, mesh.ways(batch)",
             "one.group_size, 1 if number else mesh.ways(batch)", MESHES),
]


def caught(mutation):
  """Whether the tests fail with the mutation, in a copy of the checkout."""
  with tempfile.TemporaryDirectory() as copy:
    for name in ("mtf_moe", "tests", "configs", "pyproject.toml"):
      source = os.path.join(ROOT, name)
      (shutil.copytree if os.path.isdir(source) else shutil.copy)(
          source, os.path.join(copy, name))
    path = os.path.join(copy, "mtf_moe", mutation.file)
    with open(path) as f:
      text = f.read()
    if text.count(mutation.old) != 1:
      sys.exit(f"{mutation.file} has {text.count(mutation.old)} times, not "
               f"once: {mutation.old}")
    text = text.replace(mutation.old, mutation.new)
    with open(path, "w") as f:
      f.write(text)
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2",
         "-p", "no:cacheprovider", *mutation.tests],
        cwd=copy, env={**os.environ, "PYTHONPATH": copy}, capture_output=True,
        text=True, check=False)
    if finished.returncode == 0:
      return False
    # Stopped at the first test that fails; anything else is a mistake here.
    if not re.search(r"^FAILED tests/", finished.stdout, re.MULTILINE):
      sys.exit(finished.stdout + finished.stderr)
    return True


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--only", type=int, help="the rule to break")
  only = parser.parse_args().only
  missed = 0
  for mutation in MUTATIONS:
    if only in (None, mutation.rule):
      verdict = "caught" if caught(mutation) else "MISSED"
      missed += verdict == "MISSED"
      print(f"{verdict}  rule {mutation.rule:2}: {mutation.what}", flush=True)
  sys.exit(f"{missed} mutations were missed" if missed else None)


if __name__ == "__main__":
  main()
