"""A mistake of the user is one line; a defect of ours keeps its traceback."""

import sys

from absl import app
from absl import flags
import gin
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.run import mistakes


@gin.configurable
def refuse(x):
  raise ValueError(f"refuse.x = {x!r} is not allowed: write 2.")


@gin.configurable
def refuse_inside(inner=refuse):
  inner()


@gin.configurable
def need(first=gin.REQUIRED, second=gin.REQUIRED):
  return first, second


def call(name, *bindings):
  gin.parse_config(bindings)
  return gin.get_configurable(name)()


def said(function, *args):
  """The line that a program ends with."""
  with pytest.raises(SystemExit) as ended, mistakes.told("a_program"):
    function(*args)
  return ended.value.code


@pytest.mark.parametrize("bindings, line", [
    (["refuse_inside.inner = @a/refuse", "a/refuse.x = 1"],
     "a_program: refuse.x = 1 is not allowed: write 2."),
    (["refuse_inside.inner = @need", "need.first = 1"],
     "a_program: need lacks a value that it cannot do without: set its "
     "'second' in gin."),
    (["refuse_inside.inner = @refuse"],
     "a_program: refuse lacks a value that it cannot do without: set its 'x' "
     "in gin."),
])
def test_what_gin_adds_is_left_out(bindings, line):
  assert said(call, "refuse_inside", *bindings) == line


def test_lines_become_one():
  def refuse_all():
    raise ValueError("no mesh fits:\n  one: too small\n  two: too large\n")
  assert said(refuse_all) == (
      "a_program: no mesh fits: one: too small; two: too large")


def open_nothing():
  with open("/no/such/file"):
    pass


def read_nothing():
  tf.io.gfile.GFile("/no/such/file").read()


def test_files_that_cannot_be_read():
  assert said(open_nothing) == (
      "a_program: /no/such/file: No such file or directory")
  assert "/no/such/file; No such file or directory" in said(read_nothing)


def name_error():
  return undefined  # noqa: F821


def wrong_arguments():
  return refuse_inside(1, 2, 3)


def run_a_failing_graph():
  with tf.Graph().as_default(), tf.Session() as session:
    session.run(tf.io.read_file("/no/such/file"))


def misbuild_a_graph():
  with tf.Graph().as_default():
    tf.matmul(tf.zeros([2, 3]), tf.zeros([2, 3]))


@pytest.mark.parametrize("defect", [
    name_error, wrong_arguments, lambda: {}["key"], lambda: int("x"),
    lambda: np.zeros([2]).reshape([3]), lambda: (lambda x: x)(*[1, 2]),
    run_a_failing_graph, misbuild_a_graph])
def test_a_defect_is_not_hidden(defect):
  with pytest.raises(Exception) as raised, mistakes.told("a_program"):
    defect()
  assert not isinstance(raised.value, SystemExit)


def test_arguments(monkeypatch):
  known = flags.FlagValues()
  flags.DEFINE_bool("loud", False, "", flag_values=known)
  monkeypatch.setattr(flags, "FLAGS", known)
  parsed = []

  def run_parser(main, flags_parser):
    parsed.append(flags_parser(sys.argv))

  monkeypatch.setattr(app, "run", run_parser)

  def line(*arguments):
    monkeypatch.setattr(sys, "argv", ["a_program", *arguments])
    return said(mistakes.run, "a_program", None)

  assert line("--lou=1") == (
      "a_program: Unknown command line flag 'lou'. Did you mean: loud ?")
  assert line("--loud=maybe").startswith("a_program: flag --loud=maybe: ")
  assert line("a.txt", "b.txt").startswith(
      "a_program: unknown arguments: a.txt b.txt.")
  monkeypatch.setattr(sys, "argv", ["a_program", "--loud"])
  mistakes.run("a_program", None)
  assert parsed == [["a_program"]] and known.loud
