"""The gin files that come with the package, and modules of one's own."""

import importlib
import os

from absl import flags

flags.DEFINE_multi_string(
    "module_import", [], "Python modules to import first, such as those that "
    "define your own gin configurables.")


def directory():
  """The directory with models/, meshes/, data/ and runs/.

  It is part of an installed package, and lies beside it in a checkout.
  """
  package = os.path.dirname(os.path.abspath(__file__))
  installed = os.path.join(package, "configs")
  if os.path.isdir(installed):
    return installed
  return os.path.join(os.path.dirname(package), "configs")


def import_modules():
  """Imports what --module_import names.

  Raises:
    ImportError: if one of them does not exist.
  """
  for module in flags.FLAGS.module_import:
    importlib.import_module(module)
