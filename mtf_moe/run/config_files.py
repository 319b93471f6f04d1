"""The gin files that come with the package, and modules of one's own."""

import contextlib
import importlib
import os
import tokenize

from absl import flags

flags.DEFINE_multi_string(
    "module_import", [], "Python modules to import first, such as those that "
    "define your own gin configurables.")


def directory():
  """The directory with models/, meshes/, data/ and runs/.

  It is part of an installed package, and lies beside it in a checkout.
  """
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


@contextlib.contextmanager
def readable_syntax_errors():
  """Makes one line of an error of syntax in a gin file or a --gin_param.

  Raises:
    ValueError: in place of the error, with the line that is wrong.
  """
  try:
    yield
  except SyntaxError as error:
    where = error.filename or "--gin_param"
    line = (error.text or "").strip()
    says = f" It says {line!r}." if line else ""
    raise ValueError(
        f"{where}, line {error.lineno}, is no gin: {error.msg}{says}"
    ) from error
  except tokenize.TokenError as error:  # It does not know where it was.
    raise ValueError(
        "a gin file or a --gin_param ends within brackets or quotes that it "
        "opens.") from error
