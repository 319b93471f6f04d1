"""Mutants fit the package, and what scripts/check_mutations.py says of them.

Running them takes a quarter of an hour; that each has its seam takes none.
"""

import inspect
import pathlib

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import grouping
from mtf_moe import hparams
from mtf_moe.gating import router
from scripts import check_mutations
from scripts.check_mutations import Finished
from tests.mutations import choosing
from tests.mutations import moving
from tests.mutations import mutants
from tests.mutations import seams

ROOT = pathlib.Path(__file__).parents[2]


def test_every_rule_is_broken():
  assert {one.rule for one in mutants.MUTANTS.values()} == set(mutants.RULES)
  assert len(mutants.MUTANTS) == len(choosing.MUTANTS) + len(moving.MUTANTS)


@pytest.mark.parametrize("mutant", mutants.MUTANTS.values(),
                         ids=lambda mutant: mutant.name)
def test_mutants_fit(mutant):
  """Each takes what its seam takes, behind the function itself."""
  _, _, kept = seams.find(mutant.seam)
  behind = seams.function_of(kept)
  positional = [parameter for parameter in
                inspect.signature(behind).parameters.values()
                if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
  inspect.signature(mutant.function).bind(behind, *positional)
  assert (ROOT / mutant.tests[0]).exists()


def mutant_of(seam, function):
  return seams.Mutant(1, "nothing", seam, [], function)


def scores():
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = [mtf.Dimension("group", 2), mtf.Dimension("experts", 2)]
  return router.Scores(
      mtf.zeros(mesh, mtf.Shape(dims)), importance=None, capacity_dim=dims[0],
      settings=hparams.Level(), train=True, linear=lambda name: None,
      variable=lambda name, rule: None, token_ids=lambda: None,
      above=lambda: None)


@pytest.mark.parametrize("seam, call, expected", [
    ("grouping:_split_into_groups",
     lambda: grouping._split_into_groups(8, 4, 1), (2, 4)),
    ("grouping:_split_into_groups",  # Which is there by another name.
     lambda: mtf_moe._split_into_groups(8, 4, 1), (2, 4)),
    ("hparams:Level.capacity_factor",
     lambda: hparams.Level().capacity_factor(True), 1.25),
    ("hparams:MoeHparams.levels",
     lambda: len(hparams.MoeHparams(moe_num_experts=3).levels), 1),
    ("gating.router:Scores.used",
     lambda: getattr(scores().used, "dtype", None), tf.float32),
])
def test_seams_are_replaced_for_a_while(seam, call, expected):
  before = call()
  assert before == expected
  calls = []
  with seams.applied(mutant_of(seam, lambda behind, *args: "wrong"),
                     calls.append):
    changed = call()
  assert changed != before and calls[0] == "called"
  assert call() == before


def test_mistakes_in_a_mutant_are_told():
  def sends(behind, *args):
    return behind(*args)

  def lets_fail(behind, n, *args):
    return behind(0, *args)

  def is_wrong(behind, n):
    return behind(n)

  def told_by(function):
    told = []
    with seams.applied(mutant_of("grouping:_split_into_groups", function),
                       told.append):
      try:
        grouping._split_into_groups(8, 4, 1)
      except (TypeError, ValueError):
        told.append("raised")
    return told

  assert told_by(sends) == ["called"]
  assert told_by(lets_fail) == ["called", "raised"]
  called, failed, raised = told_by(is_wrong)
  assert (called, raised) == ("called", "raised")
  assert failed.startswith("failed: TypeError: ")


@pytest.mark.parametrize("seam", [
    "grouping:none", "nowhere:anything", "gating.router:Scores.none",
    "gating.router:NoClass.gates",
    # Of its base: another class would be broken, too.
    "gating.top_2:Top2.prepare_logits"])
def test_seams_that_are_gone_are_named(seam):
  module, path = seam.split(":")
  with pytest.raises(seams.SeamGoneError, match=(
      rf"^mtf_moe\.{module} has no {path} any more")):
    seams.find(seam)


def test_no_two_mutants_have_one_name():
  found = seams.Mutants()
  add = found.breaks(1, "nothing", "grouping:expert_capacity", [])
  assert list(found) == [] and add(max) is max and list(found) == ["max"]
  with pytest.raises(ValueError, match="two mutants 'max'"):
    add(max)


@pytest.mark.parametrize("finished, expected", [
    (Finished(1, "FAILED tests/a_test.py::b", ["called"]),
     "caught by tests/a_test.py::b"),
    (Finished(0, "3 passed", ["called"]), "MISSED: no test fails."),
    (Finished(0, "3 passed", []), "UNUSED: no test calls its seam, a:b."),
    (Finished(1, "FAILED tests/a_test.py::b", []), "UNUSED: no test calls its"),
    (Finished(4, "no such file", []), "FAILED: pytest ran no test to its end."),
    (Finished(1, "FAILED tests/a_test.py::b", ["called", "failed: KeyError"]),
     "FAILED: the mutant itself, not a test. failed: KeyError"),
])
def test_verdicts(finished, expected):
  assert check_mutations.verdict(
      mutant_of("a:b", max), finished).startswith(expected)
