"""Breaks the package at places that have names, to see that tests notice.

A mutant stands in front of one function of the package, its seam, and changes
what goes in or what comes out. It names the rule that it breaks and the tests
that should fail then. A seam is written as "module:path", such as
"gating.router:Scores.gates": so a mutant holds as long as the function does
what it says, however it is written.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import importlib
import inspect
import sys
from typing import Any

_PACKAGE = "mtf_moe"


class SeamGoneError(Exception):
  """There is no function any more where a mutant was."""


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One way to break a rule.

  Attributes:
    rule: its number.
    what: what is wrong then.
    seam: see above.
    tests: arguments of pytest.
    function: what stands in front of the seam. It gets the function behind
      it, to be called or not, and then the arguments, `self` among them; of a
      property it gets `self`.
  """

  rule: int
  what: str
  seam: str
  tests: Sequence[str]
  function: Callable

  @property
  def name(self) -> str:
    return self.function.__name__


class Mutants(dict[str, Mutant]):
  """Mutants by their names; `breaks` adds one."""

  def breaks(self, rule: int, what: str, seam: str, tests: Sequence[str]):
    """A decorator that makes a `Mutant` of a function."""
    def add(function):
      mutant = Mutant(rule, what, seam, tests, function)
      if mutant.name in self:
        raise ValueError(f"There are two mutants {mutant.name!r}.")
      self[mutant.name] = mutant
      return function

    return add


@contextlib.contextmanager
def applied(mutant: Mutant, tell: Callable[[str], Any]) -> Iterator[None]:
  """A context in which the package is broken.

  Args:
    mutant: how.
    tell: is given "called" each time that the seam is called, and "failed: "
      with the reason where the mutant itself, and not what is behind it, raises
      an error: what no test noticed then is a mistake in the mutant.

  Raises:
    SeamGoneError: if there is no such function.
  """
  owner, name, kept = find(mutant.seam)
  places = [(owner, name)]
  if inspect.ismodule(owner):  # Other modules may have it as one of theirs.
    places += [(module, alias) for module in _modules()
               for alias, value in list(vars(module).items())
               if value is kept and (module, alias) != (owner, name)]
  broken = _rewrapped(
      kept, functools.partial(_in_front, mutant.function, tell))
  if isinstance(broken, functools.cached_property):
    broken.__set_name__(owner, name)
  for place, alias in places:
    setattr(place, alias, broken)
  try:
    yield
  finally:
    for place, alias in places:
      setattr(place, alias, kept)


def find(seam: str) -> tuple[Any, str, Any]:
  """What has a seam, the name that it has there, and the seam itself.

  Raises:
    SeamGoneError: if there is no such function.
  """
  module, _, path = seam.partition(":")
  *parents, name = path.split(".")
  try:
    owner = importlib.import_module(f"{_PACKAGE}.{module}")
    for parent in parents:
      owner = getattr(owner, parent)
    return owner, name, vars(owner)[name]  # And not what a class inherits.
  except (ModuleNotFoundError, AttributeError, KeyError) as error:
    raise SeamGoneError(
        f"{_PACKAGE}.{module} has no {path} any more: find another seam for "
        "its mutants.") from error


def _modules():
  return [module for name, module in list(sys.modules.items())
          if name.partition(".")[0] == _PACKAGE and module is not None]


def function_of(kept) -> Callable:
  """The function that is a seam, or that a property of this name calls."""
  if isinstance(kept, property):
    return kept.fget
  if isinstance(kept, functools.cached_property):
    return kept.func
  return kept


def _rewrapped(kept, wrap):
  """The same kind of thing with another function in it."""
  function = function_of(kept)
  return wrap(kept) if function is kept else type(kept)(wrap(function))


def _in_front(function, tell, behind):
  """What calls a mutant's function with the one `behind` its seam."""
  passed = []  # Errors of the function behind.

  def original(*args, **kwargs):
    try:
      return behind(*args, **kwargs)
    except Exception as error:
      passed.append(error)
      raise

  @functools.wraps(behind)
  def call(*args, **kwargs):
    tell("called")
    try:
      return function(original, *args, **kwargs)
    except Exception as error:
      if not any(error is one for one in passed):
        tell(f"failed: {type(error).__name__}: {error}")
      raise

  return call
