"""What parameters of gin were, by name, in a form that can be kept."""

import contextlib
import copy
from typing import Any

import gin

# Of these, values are neither a model's nor of interest: macros are resolved.
_NOT_OF_MODELS = ("gin.", "mesh_tensorflow.transformer.utils.")
_PACKAGES = ("mtf_moe", "mesh_tensorflow")


@contextlib.contextmanager
def recorded():
  """Records the parameters of all that is called within the context.

  Yields:
    a dict that is filled when the context ends: from the name of a
    configurable, with its scope and its modules, to its parameters, by name,
    defaults included where they can be written in gin
  """
  calls = {}
  operative = gin.config._OPERATIVE_CONFIG
  before = dict(operative)
  operative.clear()
  try:
    yield calls
  finally:
    for (scope, selector), values in operative.items():
      if not selector.startswith(_NOT_OF_MODELS):
        calls["/".join(filter(None, [scope, selector]))] = dict(values)
    for key, values in before.items():
      operative[key] = {**values, **operative.get(key, {})}


def described(value: Any) -> Any:
  """A value of gin as JSON has it, with macros resolved.

  Args:
    value: anything, such as a gin reference.

  Returns:
    None, a boolean, a number, a string, or lists and dicts of them. Two values
    that mean the same, however they were written, give the same.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, list | tuple):
    return [described(part) for part in value]
  if isinstance(value, dict):
    return {str(key): described(part) for key, part in value.items()}
  if isinstance(value, gin.config.ConfigurableReference):
    macro = macro_name(value)
    if macro is not None:
      return described(_macro_value(macro))
    name = "/".join([*value.scopes, value.configurable.selector])
    return f"@{name}{'()' if value.evaluate else ''}"
  name = getattr(value, "__qualname__", None)
  if name is not None:
    return f"{value.__module__}.{name}"
  text = repr(value)
  return type(value).__qualname__ if " at 0x" in text else text


def bound(configurable: str, parameter: str, default: Any = None) -> Any:
  """The value that gin binds to one parameter, as a call would get it.

  Macros are followed, and functions called that are written with parentheses.
  Of other parameters none is looked at: they may be about to ask for this one.

  Args:
    configurable: its name.
    parameter: its name.
    default: what to return where nothing is bound.
  """
  bindings = gin.get_bindings(configurable, resolve_references=False)
  # Which is how gin follows references.
  return copy.deepcopy(bindings.get(parameter, default))


def in_scopes(parameter: str, *configurables: str) -> list[str]:
  """What has to be bound so that a parameter has a value in every scope.

  Args:
    parameter: its name.
    *configurables: their names, with modules.

  Returns:
    the names, and those with a scope in which the parameter is bound, too
  """
  scoped = [f"{scope}/{selector}"
            for (scope, selector), bound in gin.config._CONFIG.items()
            if scope and selector in configurables and parameter in bound]
  return [*configurables, *scoped]


def resolved(value) -> tuple[Any, str | None]:
  """A bound value with that of macros in place of their names.

  Args:
    value: what is bound. References to functions stay as they are.

  Returns:
    the value, and the name of the macro that it is, if it is one.
  """
  if isinstance(value, gin.config.ConfigurableReference):
    if not _is_macro(value):
      return value, None
    bound = gin.config._CONFIG.get(value.config_key, {}).get("value")
    return resolved(bound)[0], value.config_key[0]
  if isinstance(value, (list, tuple)):
    return type(value)(resolved(item)[0] for item in value), None
  if isinstance(value, dict):
    return {key: resolved(item)[0] for key, item in value.items()}, None
  return value, None


def is_of_packages(configurable) -> bool:
  """Whether a configurable of gin is of this package or mesh_tensorflow."""
  return configurable.wrapped.__module__.partition(".")[0] in _PACKAGES


def is_call(value: Any) -> bool:
  """Whether a bound value is what a function returns, not known before."""
  return (isinstance(value, gin.config.ConfigurableReference)
          and value.evaluate)


def _is_macro(value):
  return value.configurable.wrapped is gin.config.macro


def macro_name(value: Any) -> str | None:
  """The name of a macro that a value of gin refers to, or None."""
  if isinstance(value, gin.config.ConfigurableReference):
    text = repr(value)
    if text.startswith("%"):
      return text[1:]
  return None


def _macro_value(name):
  for key in (name, f"{name}/gin.macro.value"):  # A constant; a macro.
    with contextlib.suppress(ValueError):
      return gin.query_parameter(key)
  return f"%{name}"
