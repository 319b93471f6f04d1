"""Shows what is in angle brackets in docstrings, such as <batch dims>.

Markdown would take it for HTML. An extension of griffe, which mkdocs.yml names.
"""

import re

import griffe


class Escaping(griffe.Extension):
  """Escapes angle brackets outside of code."""

  def on_object(self, *, obj, **unused_kwargs):
    if obj.docstring:
      parts = re.split(r"(`[^`]*`)", obj.docstring.value)
      parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
      obj.docstring.value = "".join(parts)
