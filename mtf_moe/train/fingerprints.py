"""Small values that differ where vocabularies or texts do."""

from collections.abc import Iterable
import hashlib
from typing import Any

from mtf_moe.text import text_files

# As many ids as are encoded again: enough for every piece to occur.
_NUM_ENCODED = 50_000


def of_vocabulary(vocabulary: Any) -> dict[str, Any]:
  """What a vocabulary is, whatever class and file it comes from.

  Args:
    vocabulary: a Vocabulary of mesh_tensorflow.transformer, or one like it.

  Returns:
    a dict: "class", "size", and "content", a hash of what each id stands for
    and of which ids a text gets.
  """
  size = int(vocabulary.vocab_size)
  pieces = [_or_error(vocabulary.decode, [i]) for i in range(size)]
  text = "".join(piece for piece in pieces[:_NUM_ENCODED]
                 if isinstance(piece, str))
  ids = _or_error(lambda text: list(map(int, vocabulary.encode(text))), text)
  return {"class": type(vocabulary).__qualname__, "size": size,
          "content": of_strings([*pieces, *ids])}


def of_text(files: text_files.TextFiles) -> dict[str, Any]:
  """What the text of files is, wherever they are and however it is divided.

  Args:
    files: a TextFiles.

  Returns:
    a dict: "files", their number, "bytes", and "content", a hash
  """
  documents = text_files.read_documents(files.glob, "TextFiles.glob")
  return {"files": len(documents),
          "bytes": sum(document.num_bytes for document in documents),
          "content": of_strings(document.text for document in documents)}


def _or_error(function, argument):
  """A vocabulary need not decode every id, nor encode what it decodes."""
  try:
    return function(argument)
  except Exception:  # Vocabularies come from anywhere.
    return []


def of_strings(parts: Iterable[Any]) -> str:
  """A hash of what `str` makes of each, and of where they end."""
  digest = hashlib.sha256()
  for part in parts:
    data = str(part).encode("utf-8", "surrogatepass")
    digest.update(b"%d:" % len(data) + data)
  return digest.hexdigest()[:16]
