"""The gin files of a run: those of the package, and those of the user."""

from collections.abc import Sequence
import contextlib
import difflib
import functools
import importlib
import inspect
import io
import os
import re
import sys
import sysconfig
import tokenize
import traceback

from absl import flags
import gin
import mesh_tensorflow
from mesh_tensorflow.transformer import utils

from mtf_moe.run import mistakes
from mtf_moe.run import unused
from mtf_moe.run import value_kinds

flags.DEFINE_multi_string(
    "module_import", [], "Python modules to import first, such as those that "
    "define your own gin configurables.")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PARAMETER_FLAG = "--gin_param"


def directory():
  """The directory with models/, meshes/, data/ and runs/.

  It is part of an installed package, and lies beside it in a checkout.
  """
  installed = os.path.join(_PACKAGE, "configs")
  if os.path.isdir(installed):
    return installed
  return os.path.join(os.path.dirname(os.path.dirname(_PACKAGE)), "configs")


# Those of the package, and those that came with others, such as T5's.
_NOT_OF_THE_USER = tuple(place + os.sep for place in (
    directory(), os.path.dirname(os.path.abspath(mesh_tensorflow.__file__)),
    sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


class _LeftBehind(set):
  """Names in T5's gin files that T5 has no more, and passes over as well.

  An empty set to gin, which would otherwise also pass over modules that cannot
  be imported.
  """

  def __contains__(self, name):
    if "t5" not in sys.modules:
      return False
    t5 = importlib.import_module("t5.models.mesh_transformer")
    return name in getattr(t5, "DEPRECATED_GIN_REFERENCES", ())


def read(below: Sequence[str] = (), above: Sequence[str] = ()):
  """Reads and checks the configuration that the flags name.

  That is, each over the one before it: `below`, mesh_tensorflow's defaults, the
  gin files and parameters of the user, and `above`.

  Args:
    below: lines of gin.
    above: lines of gin.

  Raises:
    ImportError: if a module that a gin file imports does not exist.
    OSError: if a gin file does not exist, or cannot be read.
    ValueError: if gin does not understand something, or a module of the user
      cannot be imported.
  """
  import_modules()
  gin.add_config_file_search_path(directory())
  sources = []
  with readable_files(sources), readable_errors():
    gin.parse_config(["import mtf_moe", *below])
    utils.parse_gin_defaults_and_flags(
        skip_unknown=_LeftBehind(), finalize_config=False)
  sources.append(unused.Source(
      _PARAMETER_FLAG, "\n".join(flags.FLAGS.gin_param or []), is_file=False))
  check(sources)
  gin.parse_config(list(above))
  gin.finalize()


def check(sources: Sequence[unused.Source] = ()):
  """Checks what has been read.

  Args:
    sources: the files and flags that it comes from.

  Raises:
    ValueError: if something is not allowed, or has no effect.
  """
  _check_macros()
  value_kinds.check()
  unused.check(sources)


def import_modules():
  """Imports what --module_import names.

  Raises:
    ValueError: if one of them cannot be imported.
  """
  for module in flags.FLAGS.module_import:
    try:
      importlib.import_module(module)
    except Exception as error:
      raise ValueError(
          f"--module_import={module} cannot be imported: {_failure(error)}. "
          "Correct it, or look for it elsewhere with PYTHONPATH.") from error


def _failure(error):
  """What a module of the user raised, and in which line."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  where = "" if last.filename.startswith("<") else (
      f" ({last.filename}, line {last.lineno})")
  return f"{type(error).__name__}: {mistakes.in_one_line(error)}{where}"


@contextlib.contextmanager
def readable_files(sources: list[unused.Source]):
  """Makes gin name a file that is no text, or whose syntax it does not know.

  Args:
    sources: to which those that are read are appended.
  """
  readers = gin.config._FILE_READERS
  before = list(readers)
  reading = []
  readers[:] = [
      (functools.partial(_opened, reader, sources, reading),
       functools.partial(_is_file, exists))
      for reader, exists in before]
  try:
    yield
  finally:
    readers[:] = before


def _is_file(exists, path):
  """Directories exist too, and TensorFlow reads them as empty files."""
  return exists(path) and not os.path.isdir(path)


@contextlib.contextmanager
def _opened(reader, sources, reading, path):
  """A gin file, as gin reads it.

  Args:
    reader: what gin would have opened it with.
    sources: a list of the files that are read.
    reading: a list of the files that are open: each includes the next.
    path: its name.
  """
  file_read = os.path.realpath(path)
  if file_read in reading:
    raise ValueError(
        f"the gin file {path} includes itself: remove the `include`.")
  with reader(path) as file:
    try:
      # In UTF-8, whatever this machine writes by itself.
      text = (file.buffer.read().decode("utf-8-sig")
              if hasattr(file, "buffer") else file.read())
      if "\0" in text:
        raise ValueError("it contains the character NUL")
    except ValueError as error:  # Of which UnicodeDecodeError is one.
      raise ValueError(
          f"the gin file {path} is not text in UTF-8: {error}. Save it as "
          "UTF-8.") from error
  file = io.StringIO(text, newline=None)  # Ends all lines in the same way.
  file.name = path
  sources.append(unused.Source(
      path, file.getvalue(), is_file=True,
      is_of_user=not os.path.abspath(path).startswith(_NOT_OF_THE_USER)))
  reading.append(file_read)
  with _readable_syntax_errors(path):
    yield file
  reading.remove(file_read)


@contextlib.contextmanager
def _readable_syntax_errors(where):
  """Makes one line of an error of syntax in gin.

  Args:
    where: the name of a file, or the flag that has the gin.

  Raises:
    ValueError: in place of the error, with the line that is wrong.
  """
  try:
    yield
  except SyntaxError as error:
    line = (error.text or "").strip()
    says = f" It says {line!r}." if line else ""
    if error.filename not in (None, where, "<string>"):  # A module it imports.
      raise ValueError(
          f"{error.filename}, line {error.lineno}, is no Python: {error.msg}."
          f"{says}") from error
    # Before its last line, Python says where it was in memory.
    why = error.msg.strip().splitlines()[-1].strip()
    raise ValueError(
        f"{where}, line {error.lineno}, is no gin: {why}{says}") from error
  except tokenize.TokenError as error:  # It does not know where it was.
    raise ValueError(
        f"{where} ends within brackets or quotes that it opens: it is no gin."
        ) from error


@contextlib.contextmanager
def readable_errors():
  """Says more of what gin does not find than gin does."""
  try:
    with _readable_syntax_errors(_PARAMETER_FLAG):
      yield
  except OSError as error:
    name = re.match(r"Unable to open file: (.*?)\. Searched", str(error))
    if name is None:
      raise
    raise OSError(_missing_file(name[1], str(error))) from error
  except ValueError as error:
    advice = _advice(str(error))
    if not advice:
      raise
    raise ValueError(f"{mistakes.in_one_line(error)} {advice}") from error
  except ImportError:
    raise
  except KeyError as error:  # With a message of its own, in quotes.
    ambiguous = re.search(r"Ambiguous selector.*\]", str(error))
    if ambiguous is None:
      raise
    raise ValueError(f"{ambiguous[0]}: write more of the name.") from error
  except Exception as error:  # Of a module that gin imports.
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename.startswith(_PACKAGE):
      raise
    raise ValueError(f"gin imports what fails: {_failure(error)}.") from error


def _missing_file(name, message):
  """What to say of a gin file that cannot be opened."""
  where = mistakes.in_one_line(OSError(message)).partition("].")[2]
  places = [""] if os.path.isabs(name) else gin.config._LOCATION_PREFIXES
  if not name.strip():
    return (f"{name!r} is the name of no gin file{where}: give one, such as "
            "--gin_file=runs/tiny.gin, or leave the flag out.")
  what = "does not exist"
  if any(os.path.isdir(os.path.join(place, name)) for place in places):
    what = "is a directory"
  looked = "" if os.path.isabs(name) else (
      " Looked for it in " + ", ".join(
          os.path.abspath(place) for place in dict.fromkeys(places)) + ".")
  return f"the gin file {name} {what}{where}.{looked}"


def _advice(message):
  """What the user may have meant with a name that gin does not know."""
  if found := re.search(
      r"No configurable matching (?:reference )?'@?([^'()]*)", message):
    known = {selector.rpartition(".")[2]
             for selector, _ in gin.config._REGISTRY.items()}
    name = found[1].rpartition("/")[2].rpartition(".")[2]
    close = difflib.get_close_matches(name, sorted(known), n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    return (f"{meant}What is not imported is not known: name its module with "
            "`import` in a gin file, or with --module_import.")
  if found := re.search(
      r"Configurable '(.*)' doesn't have a parameter named '([^']*)'", message):
    configurable = gin.config._REGISTRY.get_match(found[1])
    has = list(inspect.signature(configurable.wrapped).parameters)
    close = difflib.get_close_matches(found[2], has, n=1)
    return (f"Did you mean {close[0]!r}?" if close
            else f"It has: {', '.join(has)}.")
  return ""


def _check_macros():
  """Raises ValueError if something refers to a macro that nobody sets."""
  config = gin.config._CONFIG
  macro = gin.get_configurable(gin.config.macro)
  for (scope, selector), parameters in config.items():
    for name, value in parameters.items():
      for reference in gin.config.iterate_references(value, to=macro):
        if reference.config_key not in config:
          where = scope if selector == "gin.macro" else (
              gin.config._format_binding_key(scope, selector, name))
          unset, _ = reference.config_key
          raise ValueError(
              f"{where} refers to %{unset}, and nothing sets that macro: give "
              f"it a value, such as --gin_param='{unset} = ...'.")
  for key in config:
    _check_ends(key, [])


def _check_ends(key, way):
  """Raises ValueError if a value that gin works out refers to itself.

  Args:
    key: the scope and the name of a configurable, as gin has them.
    way: a list of those that led to it.
  """
  if key in way:
    circle = [*way[way.index(key):], key]
    names = " refers to ".join(
        f"%{scope}" if selector == "gin.macro" else
        f"@{'/'.join(filter(None, [scope, selector]))}()"
        for scope, selector in circle)
    raise ValueError(
        f"{names}, so that it has no value: give one of them a value that "
        "refers to none of these.")
  config = gin.config._CONFIG
  for reference in gin.config.iterate_references(config.get(key, {})):
    if reference.evaluate:
      _check_ends(reference.config_key, [*way, key])
