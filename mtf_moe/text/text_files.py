"""Local text files, and which of them are kept out of training.

Knows files and text only: no tokens, no TensorFlow. `text_data` turns the
documents found here into a data set, `vocabulary` trains a tokenizer on them.
"""

from collections.abc import Sequence
import dataclasses
import fnmatch
import glob as glob_lib
import importlib.metadata
import importlib.util
import os
import re

import gin
from packaging import requirements
from packaging import utils

# Opens a glob that starts inside an installed package instead of the current
# directory, so that a configuration can name data that pip installed without
# naming a place on one machine.
PACKAGE_PREFIX = "package:"


@dataclasses.dataclass(frozen=True)
class Document:
  """The text of one file, or the piece of it that is in one part.

  Attributes:
    path: the file's path.
    text: the text, with its line ends as they are in the file.
  """
  path: str
  text: str

  @property
  def num_bytes(self):
    """Length of the text in bytes of UTF-8."""
    return len(self.text.encode("utf-8"))


@gin.configurable(module="mtf_moe")
@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Text files by name, divided into a training and a held-out part.

  The division depends on the files alone: not on a seed, the vocabulary or the
  sequence length. Models with different vocabularies are therefore measured on
  the same held-out text.

  Attributes:
    glob: a pattern of paths, or a list of patterns; `**` matches any number of
      directories, and `[[]` is the character [ itself, as `[*]` and `[?]` are.
      "package:NAME/PATTERN" looks inside the installed Python package NAME,
      without importing it. Files are taken in the order of their sorted paths,
      each once; each is one document, in UTF-8.
    held_out: what is kept out of training. A string is a pattern, and the files
      of `glob` that it matches are held out: one of file names, such as `20*`,
      or, if it has a "/", one of paths as in `glob`, such as
      `package:docutils/**/*.py`. A list of strings is several patterns. A
      number between 0 and 1 is a fraction: that much of the text, counted in
      characters, is held out from the end of the last file on. If this cuts a
      file, each of its pieces is a document of its part.
    allow_short_files: whether a file may have fewer tokens than a sequence.
      Sequences run across the ends of documents either way; a file that does
      not even fill one is more often a mistake in `glob` than intended.

  Raises:
    ValueError: when built, if `glob` is no pattern, or `held_out` is neither
      patterns nor a fraction.
  """
  glob: str | Sequence[str] = gin.REQUIRED
  held_out: str | Sequence[str] | float = 0.1
  allow_short_files: bool = False

  def __post_init__(self):
    for name in ("glob", "held_out"):
      if isinstance(getattr(self, name), list):
        # What gin gives for several patterns, but this object must be hashable.
        object.__setattr__(self, name, tuple(getattr(self, name)))
    if not _are_patterns(self.glob):
      raise ValueError(
          f"TextFiles.glob={self.glob!r} names no file. Give a pattern such as "
          "'text/*.txt', or a list of patterns.")
    if _are_patterns(self.held_out):
      return
    if isinstance(self.held_out, float) and 0.0 < self.held_out < 1.0:
      return
    raise ValueError(
        f"TextFiles.held_out={self.held_out!r} is not allowed. Give a fraction "
        "above 0 and below 1, such as 0.1, to hold out the end of the text, or "
        "a pattern of file names, such as '20*', or of paths, such as "
        "'text/new/*.txt', or a list of patterns, to hold out whole files.")

  def read(self):
    """Reads all files.

    Returns:
      Two lists of `Document`: the training part and the held-out part. Either
      can be empty if `held_out` is a fraction.

    Raises:
      ValueError: no file matches `glob`; a file is not UTF-8; `held_out`
        matches no file, or all of them.
    """
    documents = read_documents(self.glob, "TextFiles.glob")
    if isinstance(self.held_out, float):
      return _split_by_fraction(documents, self.held_out)
    return _split_by_patterns(documents, self.held_out)


def _are_patterns(value):
  """Whether it is a string or several, none of them empty."""
  patterns = _as_list(value)
  return isinstance(patterns, list | tuple) and bool(patterns) and all(
      isinstance(pattern, str) and pattern for pattern in patterns)


def _as_list(patterns):
  """One pattern as a list of one."""
  return [patterns] if isinstance(patterns, str) else patterns


def read_documents(patterns, parameter):
  """Reads the files that match one pattern or several, as in `TextFiles.glob`.

  Args:
    patterns: a string or a list of strings.
    parameter: what the user calls `patterns`, for error messages.

  Returns:
    A list of `Document`, one a file, sorted by path.

  Raises:
    ValueError: a pattern matches no file, or names a package that is not
      installed; a file is not UTF-8.
  """
  return [Document(path, _read_text(path, parameter))
          for path in _find_files(patterns, parameter)]


def _find_files(patterns, parameter):
  """The sorted paths that match, each once."""
  found = set()
  for pattern in _as_list(patterns):
    path_pattern = _resolve_package(os.path.expanduser(pattern), parameter)
    paths = [path for path in glob_lib.glob(path_pattern, recursive=True)
             if os.path.isfile(path)]
    if not paths:
      raise ValueError(
          f"{parameter}={pattern!r} matches no file (looked for "
          f"{os.path.abspath(path_pattern)}). Correct the path or the pattern; "
          "a relative one starts at the current directory.")
    found.update(paths)
  return sorted(found)


def _resolve_package(pattern, parameter):
  """Turns "package:NAME/PATTERN" into a pattern of paths."""
  if not pattern.startswith(PACKAGE_PREFIX):
    return pattern
  package, _, inside = pattern[len(PACKAGE_PREFIX):].partition("/")
  spec = importlib.util.find_spec(package) if package.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(
        f"{parameter}={pattern!r} looks inside the Python package {package!r}, "
        f"which is not installed. {_how_to_install(package)}or give the path "
        "of text files of your own.")
  directory = glob_lib.escape(next(iter(spec.submodule_search_locations)))
  return os.path.join(directory, inside)


def _how_to_install(package):
  """The command, which brings all the packages that belong to a text."""
  if not package.isidentifier():
    return "Name a package, "
  what = package
  for line in _own_requirements():
    requirement = requirements.Requirement(line)
    extra = re.search('extra == "(.*)"', str(requirement.marker))
    if extra and _same_name(requirement.name, package):
      what = f"'mtf_moe[{extra[1]}]'"
      break
  return f"Install it with `pip install {what}`, "


def _same_name(distribution, package):
  return utils.canonicalize_name(distribution) == utils.canonicalize_name(
      package)


def _own_requirements():
  """What mtf_moe says that it needs, if it is installed."""
  try:
    return importlib.metadata.requires("mtf_moe") or []
  except importlib.metadata.PackageNotFoundError:
    return []


def _read_text(path, parameter):
  """Reads a UTF-8 file and keeps every byte of it, line ends included."""
  with open(path, "rb") as f:
    data = f.read()
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
        f"{parameter} matches {path}, which is not text in UTF-8 (byte "
        f"{error.start} is 0x{data[error.start]:02x}: {error.reason}). Convert "
        f"the file to UTF-8, or change {parameter} to leave it out.") from error


def _split_by_patterns(documents, patterns):
  """Holds out the documents whose name or path matches one of the patterns."""
  train, held_out = [], []
  held_out_paths = _matching_paths(documents, patterns)
  for document in documents:
    (held_out if document.path in held_out_paths else train).append(document)
  if train and held_out:
    return train, held_out
  how_many = "none" if train else "every one"
  raise ValueError(
      f"TextFiles.held_out={patterns!r} matches {how_many} of the "
      f"{len(documents)} files of TextFiles.glob, such as "
      f"{os.path.basename(documents[0].path)!r} ({documents[0].path}). Give a "
      "pattern that some of the file names (without directories) match and "
      "others do not, such as '20*', one of paths, such as 'text/new/*.txt', "
      "or a fraction such as 0.1.")


def _matching_paths(documents, patterns):
  """The set of paths that `TextFiles.held_out` means."""
  found = set()
  for pattern in _as_list(patterns):
    if "/" in pattern:
      found.update(_find_files(pattern, "TextFiles.held_out"))
    else:
      found.update(
          document.path for document in documents
          if fnmatch.fnmatchcase(os.path.basename(document.path), pattern))
  return found


def _split_by_fraction(documents, fraction):
  """Holds out the last characters of the concatenated documents."""
  num_chars = sum(len(document.text) for document in documents)
  remaining = num_chars - round(fraction * num_chars)
  train, held_out = [], []
  for document in documents:
    head, tail = document.text[:remaining], document.text[remaining:]
    if head or not tail:  # An empty file has neither, and must not get lost.
      train.append(dataclasses.replace(document, text=head))
    if tail:
      held_out.append(dataclasses.replace(document, text=tail))
    remaining -= len(head)
  return train, held_out
