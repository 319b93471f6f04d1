"""Hyperparameters as other programs hold them: mappings, and objects.

A name that nobody knows is a misspelled one, whose default would be used
without a word.
"""

from collections.abc import Iterable
import difflib
from typing import Any

from mtf_moe.knobs import PREFIX

# What programs hold beside the layer's hyperparameters, for other layers.
_OF_MESH_TENSORFLOW = frozenset({
    "moe_heterogeneous_mask_info", "moe_num_layers"})
_OF_TENSOR2TENSOR = frozenset({
    "moe_expert_x", "moe_expert_y", "moe_experts_x", "moe_experts_y",
    "moe_hidden_sizes", "moe_k", "moe_layers", "moe_layers_decoder",
    "moe_layers_encoder", "moe_n1", "moe_n2", "moe_overhead_eval",
    "moe_overhead_train"})
_OTHERS = _OF_MESH_TENSORFLOW | _OF_TENSOR2TENSOR


def stated(hparams: Any, known: Iterable[str]) -> dict[str, Any]:
  """The hyperparameters that a mapping or an object states, by name.

  Args:
    hparams: a mapping, or an object with attributes. Whatever does not begin
      with "moe_" is left alone.
    known: the names of the layer's hyperparameters.

  Returns:
    a dict

  Raises:
    ValueError: on an unknown name, names that all lack the "moe_", or something
      that has no names at all.
  """
  known = list(known)
  is_named = hasattr(hparams, "_fields")  # A named tuple.
  if hparams is None or (not is_named and isinstance(
      hparams, (str, bytes, int, float, list, tuple, set))):
    raise ValueError(
        f"hparams = {hparams!r} names no hyperparameters: pass a MoeHparams, "
        "or a mapping or object with moe_* names, such as "
        '{"moe_hidden_size": 4096}.')
  entries: dict[str, Any] = {}
  if callable(getattr(type(hparams), "keys", None)):  # A mapping, or like one.
    given = dict(hparams)
    entries.update((name, value) for name, value in given.items()
                   if isinstance(name, str) and _is_ours(name))
    _check_prefixes(given, known)
  for name in filter(_is_ours, dir(hparams)):
    value = getattr(hparams, name, None)
    # It may have methods, and attributes that are not set.
    if hasattr(hparams, name) and (name in known or not callable(value)):
      entries.setdefault(name, value)
  for name in known:
    # An object may make up attributes that are asked for, None at worst.
    if name not in entries and getattr(hparams, name, None) is not None:
      entries[name] = getattr(hparams, name)
  for name, value in entries.items():
    check_known(name, value, known)
  if "moe_num_experts" not in entries and (
      {"moe_expert_x", "moe_expert_y"} <= entries.keys()):
    entries["moe_num_experts"] = (
        entries["moe_expert_x"], entries["moe_expert_y"])
  return {name: entries[name] for name in known if name in entries}


def _check_prefixes(given, known):
  """Raises ValueError for a mapping of nothing but names without prefix."""
  right = [f"{PREFIX}{name}" for name in given]
  if right and all(name in known for name in right):
    raise ValueError(
        f"hparams = {given!r} names no hyperparameter of the layer, since all "
        f"begin with {PREFIX}: call them {', '.join(right)}.")


def check_known(name: str, value: Any, known: Iterable[str]):
  """Raises ValueError unless somebody knows the name.

  Args:
    name: a string.
    value: what it is set to, for the message.
    known: the names of the layer's hyperparameters.
  """
  known = list(known)
  if name in known or name in _OTHERS or not (
      _is_ours(name) or PREFIX + name in known):
    return
  nearest = difflib.get_close_matches(
      name.lower(), known, n=1) or difflib.get_close_matches(
          PREFIX + name.lower(), known, n=1)
  remedy = (f"did you mean {nearest[0]}?" if nearest else
            f"choose one of: {', '.join(known)}.")
  raise ValueError(
      f"{name} = {value!r} is no hyperparameter of the layer: {remedy}")


def _is_ours(name):
  return name.lower().startswith(PREFIX)
