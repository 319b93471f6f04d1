"""The mesh and the layout of a run: read, and checked against each other."""

from collections.abc import Iterable
import logging

import gin
from gin import config as gin_config
import mesh_tensorflow as mtf

from mtf_moe import levels
from mtf_moe import mesh_split
from mtf_moe.run import gin_bindings

_logger = logging.getLogger(__name__)

_EXAMPLE_LAYOUT = levels.canonical_layout(2, ["outer", "batch"])
# Axes that layouts name for the sake of other meshes.
_USUAL_AXES = ("outer", "batch", "model", "ensemble")
# What sets the size of a dimension of mesh_tensorflow's own layers.
_SIZES = {
    "vocab": "Unitransformer.vocab_divisor (with the vocabulary)",
    "d_model": "Unitransformer.d_model",
    "max_length": "Unitransformer.max_length",
    "d_ff": "DenseReluDense.hidden_size",
    "heads": "SelfAttention.num_heads",
    "d_kv": "SelfAttention.key_value_size",
    "length": "run.sequence_length",
    "memory_length": "run.sequence_length",
    "expert_hidden": "MoE2D.hidden_size",
    "shared_hidden": "MoE2D.shared_hidden_size",
}


def check_is_set():
  """Raises ValueError unless gin has a mesh for the run.

  mesh_tensorflow's default asks for that of a TPU, without a word of the mesh.
  """
  run = gin.get_bindings("utils.run", resolve_references=False)
  mesh_shape, _ = gin_bindings.resolved(run.get("mesh_shape"))
  if isinstance(mesh_shape, gin_config.ConfigurableReference):
    if mesh_shape.configurable.name != "tpu_mesh_shape" or (
        "tpu_topology" in gin.get_bindings(
            "utils.tpu_mesh_shape", resolve_references=False)):
      return
  elif mesh_shape is not None:
    return
  raise ValueError(
      "run.mesh_shape is not set: add a mesh, such as "
      "--gin_file=meshes/cpu_1.gin, or set it (and run.layout_rules), such as "
      "--gin_param='run.mesh_shape = \"outer:1,batch:1\"'.")


def mesh_shape(value) -> mtf.Shape:
  """Reads run.mesh_shape.

  Args:
    value: an input to mtf.convert_to_shape.

  Raises:
    ValueError: if it is none, or no dimension has a size.
  """
  example = "outer:4,batch:4"
  if not isinstance(value, mtf.Shape):
    sizes = _pairs(value, "run.mesh_shape", example)
    names = [name for name, _ in sizes]
    for name, size in sizes:
      if names.count(name) > 1:
        raise ValueError(
            f"run.mesh_shape = {value!r} has the dimension {name!r} twice: "
            "give each a name of its own.")
      if not size.isdecimal() or int(size) < 1:
        raise ValueError(
            f"run.mesh_shape = {value!r} gives dimension {name!r} the size "
            f"{size}: make it an integer of 1 or more.")
  return _parsed(mtf.convert_to_shape, "run.mesh_shape", value, example)


def layout_rules(value, shape: mtf.Shape) -> mtf.LayoutRules:
  """Reads run.layout_rules.

  Args:
    value: an input to mtf.convert_to_layout_rules.
    shape: the mesh.

  Raises:
    ValueError: if it is none, or splits a dimension twice.
  """
  if not isinstance(value, mtf.LayoutRules):
    _pairs(value, "run.layout_rules", _EXAMPLE_LAYOUT)
  layout = _parsed(mtf.convert_to_layout_rules, "run.layout_rules", value,
                   _EXAMPLE_LAYOUT)
  axes = {}
  for name, axis in sorted(layout._pairs):  # mtf only answers one by one.
    if axis not in shape.dimension_names:
      if axis not in _USUAL_AXES:
        _logger.warning(
            "run.layout_rules has %s:%s, and run.mesh_shape has no dimension "
            "%r, but %s: nothing is split by this rule.", name, axis, axis,
            ", ".join(map(repr, shape.dimension_names)))
    elif axes.setdefault(name, axis) != axis:
      raise ValueError(
          f"run.layout_rules = {value!r} splits {name!r} over both "
          f"{axes[name]!r} and {axis!r}: a dimension can be split over one "
          "mesh dimension only.")
  return layout


def check_tensors(tensors: Iterable[mtf.Tensor], mesh: mesh_split.MeshSplit):
  """Sees that the mesh can hold tensors.

  Args:
    tensors: of a graph.
    mesh: how the layout splits dimensions.

  Raises:
    ValueError: if two dimensions of one are split over the same mesh dimension,
      or one is not divided by it.
  """
  for dims, name in {tuple(t.shape.dims): t.name for t in tensors}.items():
    split = {}
    for dim in dims:
      axis = mesh.axis(dim)
      if axis is None:
        continue
      if axis in split:
        raise ValueError(
            f"run.layout_rules splits both {split[axis].name!r} and "
            f"{dim.name!r} over mesh dimension {axis.name!r}, and a tensor has "
            f"both ({name}, of {', '.join(d.name for d in dims)}): split one "
            "of them over another mesh dimension, or over none.")
      split[axis] = dim
      mesh.check_divides(dim, _SIZES.get(dim.name, name))


def _pairs(value, name, example):
  """Pairs of strings, or a ValueError that names the parameter."""
  pairs = value
  if isinstance(value, str):
    pairs = [pair.split(":") for pair in value.split(",") if pair.strip()]
  # Of other collections, mtf takes whatever they have for pairs.
  if not isinstance(pairs, (list, tuple)) or not all(
      isinstance(pair, (list, tuple)) for pair in pairs):
    raise _unreadable(value, name, example)
  pairs = [tuple(str(part).strip() for part in pair) for pair in pairs]
  if any(len(pair) != 2 or not all(pair) for pair in pairs):
    raise _unreadable(value, name, example)
  return pairs


def _parsed(parse, name, value, example):
  """What mtf makes of a value, or a ValueError that names the parameter."""
  try:
    parsed = parse(value)
  except (TypeError, ValueError, AttributeError):
    parsed = None
  if parsed is None:
    raise _unreadable(value, name, example)
  return parsed


def _unreadable(value, name, example):
  return ValueError(
      f"{name} = {value!r} cannot be read: write pairs of a name and what "
      f'belongs to it, such as "{example}".')
