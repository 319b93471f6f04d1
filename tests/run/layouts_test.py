"""Meshes and layouts that cannot be, in one line before anything is run."""

import logging
import re

import mesh_tensorflow as mtf
import pytest

from mtf_moe.run import layouts
from mtf_moe.run.configured_model import ConfiguredModel
from tests import gin_config

FILES = ["models/lm_tiny.gin", "meshes/cpu_1.gin", "data/bytes.gin"]
SMALL = ["num_layers = 1", "d_model = 16", "run.perplexity_eval_steps = 1",
         "batch_size = 4", "sequence_length = 16"]


def build(*bindings, files=FILES):
  gin_config.parse(files, [*SMALL, *bindings])
  return ConfiguredModel.from_gin().variables


@pytest.mark.parametrize("files, bindings", [
    (["models/lm_tiny.gin", "data/bytes.gin"], []),
    (FILES, ["run.mesh_shape = None"])])
def test_no_mesh(files, bindings):
  with pytest.raises(ValueError, match=(
      r"run.mesh_shape is not set: add .*meshes/cpu_1.gin")):
    build(*bindings, files=files)


@pytest.mark.parametrize("shape, said", [
    ("outer:0,batch:1", "'outer' the size 0: make it an integer of 1 or more"),
    ("outer:-1,batch:1", "'outer' the size -1: make it"),
    ("outer:1.5,batch:1", "'outer' the size 1.5: make it"),
    ("outer:1,outer:1", "has the dimension 'outer' twice"),
    ("outer=1", "cannot be read: write pairs of a name"),
    ("outer:", "cannot be read"),
])
def test_meshes(shape, said):
  with pytest.raises(ValueError, match=f"run.mesh_shape = '{shape}' .*{said}"):
    build(f"run.mesh_shape = '{shape}'")


def test_pairs():
  build("run.mesh_shape = [('outer', 1), ('batch', 1)]",
        "run.layout_rules = [('batch', 'batch')]")
  for name, values in [
      ("mesh_shape", ["{'batch': 1}", "['batch:1']", "[('batch', '1')]", "3"]),
      ("layout_rules", ["{'batch': 'batch'}", "['batch:batch']", "['ab']",
                        "[('batch', 'batch', 'outer')]", "3", "None"])]:
    for value in values:
      with pytest.raises(ValueError, match=(
          rf"run\.{name} = {re.escape(value)} cannot be read: write pairs")):
        build(f"run.{name} = {value}")
  with pytest.raises(ValueError, match="'batch' the size 0: make it an integ"):
    build("run.mesh_shape = [('outer', 1), ('batch', 0)]")


@pytest.mark.parametrize("mesh, rules, said", [
    ("outer:1,batch:1", "batch:batch,batch:outer",
     "splits 'batch' over both 'batch' and 'outer'"),
    ("outer:1,batch:2", "vocab:batch,d_model:batch",
     "splits both 'vocab' and 'd_model' over .* 'batch'.*/embedding"),
    ("outer:1,batch:2", "batch:batch,length:batch",
     "splits both 'batch' and 'length' over mesh dimension 'batch'"),
    ("outer:1,batch:4", "heads:batch",
     "SelfAttention.num_heads gives dimension 'heads' the size 2"),
    ("outer:1,batch:5", "vocab:batch", "gives dimension 'vocab' the size 384"),
    ("outer:1,batch:3", "d_model:batch",
     "Unitransformer.d_model gives dimension 'd_model' the size 16"),
])
def test_layouts(mesh, rules, said):
  with pytest.raises(ValueError, match=said):
    build(f"run.mesh_shape = '{mesh}'", f"run.layout_rules = '{rules}'")


def test_a_rule_for_no_axis(caplog):
  shape = mtf.convert_to_shape("outer:1,batch:2")
  with caplog.at_level(logging.WARNING):
    layouts.layout_rules("batch:bacth", shape)
  assert "has batch:bacth, and run.mesh_shape has no dimension" in caplog.text
  caplog.clear()
  # As mesh_tensorflow's own do, and layouts for several meshes.
  layouts.layout_rules("d_ff:model,batch:batch", shape)
  assert not caplog.text


def test_devices():
  with pytest.raises(ValueError, match=r"names 2 devices, and .* has 1 slices"):
    build("run.mesh_devices = ['cpu:0', 'cpu:1']")


@pytest.mark.parametrize("given", [
    "('tokens_per_batch', 100)", "('tokens_per_replica', 100)"])
def test_a_batch_of_parts_of_sequences(given):
  with pytest.raises(ValueError, match=(
      r"run.batch_size = \('tokens_per_.*', 100\) makes no whole number of "
      r"sequences of 16 tokens .*100 is not divisible by 16")):
    build(f"run.batch_size = {given}")


# A table of positions is as long as the longest sequence, or than a prompt and
# its continuation.
@pytest.mark.parametrize("needed, bindings", [
    (16, []),
    (32, ["run.mode = 'infer'"]),
    (20, ["run.mode = 'infer'", "BeamSearch.max_length = 4"]),
    (32, ["run.mode = 'infer'", "BeamSearch.max_length = None"]),
    (24, ["run.mode = 'infer'",
          "run.sequence_length = {'inputs': 16, 'targets': 8}"]),
])
def test_positions(needed, bindings):
  bindings = ["Unitransformer.positional_embedding = True", *bindings]
  if any("BeamSearch" in binding for binding in bindings):
    bindings = ["import mtf_moe.decoding.beam_search",
                "run.predict_fn = @mtf_moe.BeamSearch()", *bindings]
  build(f"Unitransformer.max_length = {needed}", *bindings)
  with pytest.raises(ValueError, match=(
      f"Unitransformer.max_length = {needed - 1} is the length .*may have "
      f"{needed} tokens")):
    build(f"Unitransformer.max_length = {needed - 1}", *bindings)
