"""A module in place of one that is missing, which says so where it matters."""

import importlib.machinery
import sys
import types


class StandIn(types.ModuleType):
  """Has what it is given, and says why it has nothing else.

  It is a package, as what it stands in for: `from it import x` looks for a
  module x, and there a finder can say the same.

  Attributes:
    message: why other things are not there, and what to do.
  """

  def __init__(self, name: str, message: str):
    super().__init__(
        name, "Stands in for a missing module; see mtf_moe.compat.")
    self.message = message
    self.__path__ = []
    # Without a spec, importlib.util.find_spec(name) raises.
    self.__spec__ = importlib.machinery.ModuleSpec(
        name, loader=None, is_package=True)

  def __getattr__(self, name):
    if name.startswith("__"):  # Python's own questions to a module.
      raise AttributeError(name)
    raise AttributeError(f"{self.__name__}.{name}: {self.message}")

  def install(self):
    """Makes `import` find it, and nothing of what it stands in for."""
    for name in list(sys.modules):
      if name.startswith(f"{self.__name__}."):  # Of one that is broken.
        del sys.modules[name]
    sys.modules[self.__name__] = self
    sys.meta_path.insert(0, _NoSubmodules(self))


class _NoSubmodules:
  """Finds no module in a stand-in, and says why."""

  def __init__(self, package):
    self._package = package

  def find_spec(self, name, unused_path=None, unused_target=None):
    parent = self._package.__name__
    if name.startswith(f"{parent}.") and (
        sys.modules.get(parent) is self._package):
      raise ImportError(f"{name}: {self._package.message}", name=name)
    return None
