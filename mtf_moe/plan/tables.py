"""How a plan writes tables and sizes."""

from collections.abc import Sequence

import tabulate


def table(rows: Sequence[Sequence], headers: Sequence[str] = ()) -> str:
  """Rows as text, numbers as they are, with a line below the headers."""
  return tabulate.tabulate(
      rows, headers, tablefmt="simple" if headers else "plain",
      disable_numparse=True)


def mib(size: float) -> str:
  """A size in bytes as a number of MiB."""
  return f"{size / 2 ** 20:,.1f}"
