"""Counts of generated cases and their largest errors, for the end of a run."""

import collections
import dataclasses
import json

PROPERTY = "comparison"


@dataclasses.dataclass
class Tally:
  """What the comparisons found.

  Attributes:
    cases: descriptions of the cases; a repeated one counts once.
    counts: how many cases have a property, by its name.
    errors: the largest error, by its kind.
  """

  cases: set[str] = dataclasses.field(default_factory=set)
  counts: collections.Counter = dataclasses.field(
      default_factory=collections.Counter)
  errors: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, case, errors):
    """Counts a Case and what `comparison.compare` found."""
    if str(case) in self.cases:
      return
    self.cases.add(str(case))
    self.counts.update([
        f"{case.dtype.name}", "train" if case.train else "eval",
        f"mesh {case.mesh[0]}x{case.mesh[1]}", f"policy {case.policy}",
        f"importance {case.importance}", f"gates {case.router}",
        *(["z-loss"] if case.z_loss is not None else []),
        *([] if "loops: output" in errors else ["loops not compared"])])
    for name, error in errors.items():
      kind = name.partition(" of ")[0].partition(" along ")[0]
      self._largest(f"{kind}, {case.dtype.name}", error)

  def merge(self, json_text):
    """Adds the tally that `as_json` wrote."""
    other = json.loads(json_text)
    self.cases.update(other["cases"])
    self.counts.update(other["counts"])
    for kind, error in other["errors"].items():
      self._largest(kind, error)

  def as_json(self):
    return json.dumps({
        "cases": sorted(self.cases), "counts": self.counts,
        "errors": self.errors})

  def lines(self):
    """For a person to read."""
    yield f"{len(self.cases)} different cases: " + ", ".join(
        f"{count} {name}" for name, count in sorted(self.counts.items()))
    yield "largest error, relative to the largest element of what is compared:"
    for kind, error in sorted(self.errors.items()):
      yield f"  {kind}: {error:.1e}"

  def _largest(self, kind, error):
    self.errors[kind] = max(error, self.errors.get(kind, 0.0))
