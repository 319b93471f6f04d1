"""What the TPU's compiler made of a training step."""

import collections
from collections.abc import Sequence
import dataclasses

from mtf_moe.plan import hlo
from mtf_moe.plan import tables

_REMEDY = (
    "lower serialize_num_microbatches.tokens_per_microbatch_per_replica, which "
    "cuts the step into smaller parts, use a larger mesh, or set "
    "get_variable_dtype.activation_dtype and slice_dtype to 'bfloat16'.")


@dataclasses.dataclass(frozen=True)
class Target:
  """What a step was compiled for.

  Attributes:
    topology: the slice, such as "v5e:16x16".
    chip: the kind of its chips.
    cores: how many there are.
    hbm_bytes: of a core, or None if it is not known.
  """
  topology: str
  chip: str
  cores: int
  hbm_bytes: int | None

  def __str__(self):
    return f"{self.topology} ({self.chip}, {self.cores} cores)"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Of a core, in bytes, as a compiler has laid it out, in its tiles.

  Attributes:
    arguments: variables, the optimizer's as well, and inputs.
    outputs: their next values, and the loss.
    aliased: outputs that lie where arguments were.
    temporaries: what is computed in between.
    program: the program's own, with its constants.
    peak: most that is live at a time; what is held in the core's own memory
      (VMEM) counts here, and in nothing else.
  """
  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  program: int
  peak: int

  @property
  def total(self) -> int:
    """What the step takes of the chip's memory (HBM)."""
    return (self.arguments + self.outputs - self.aliased + self.temporaries
            + self.program)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step that was compiled.

  Attributes:
    target: the `Target`.
    seconds: that compiling took.
    memory: the `Memory` of a core.
    flops: on one core by the compiler's count, in which a loop counts once.
    accessed_bytes: that instructions of a core read and write, likewise.
    collectives: the `hlo.Kept`, in their order.
  """
  target: Target
  seconds: float
  memory: Memory
  flops: float
  accessed_bytes: float
  collectives: Sequence[hlo.Kept]

  def findings(self) -> list[str]:
    """Sentences on what is wrong."""
    limit = self.target.hbm_bytes
    if limit is None or self.memory.total <= limit:
      return []
    return [_does_not_fit(
        f"it takes {tables.mib(self.memory.total)} MiB of a core's "
        f"{tables.mib(limit)}")]

  def text(self) -> str:
    """Tables, for a terminal."""
    return "\n\n".join([
        f"compiled for {self.target} in {self.seconds:.0f} s",
        tables.table(self._memory_rows(),
                     ["the compiler's memory, on one core", "MiB"]),
        tables.table([
            ["floating-point operations (a loop counts once)",
             f"{self.flops / 1e12:,.3f} TFLOP a core"],
            ["bytes read and written (likewise)",
             f"{tables.mib(self.accessed_bytes)} MiB a core"]]),
        tables.table(self._collective_rows(), [
            "collectives that it kept, in a step", "along", "times",
            "MiB a core", "asynchronous", "products meanwhile"])])

  def _memory_rows(self):
    memory, limit = self.memory, self.target.hbm_bytes
    rows = [["arguments (variables, slots, inputs)", memory.arguments],
            ["outputs in places of their own",
             memory.outputs - memory.aliased],
            ["temporaries", memory.temporaries],
            ["program and constants", memory.program],
            ["altogether", memory.total],
            ["peak, with what the core's own memory holds", memory.peak]]
    if limit is not None:
      rows.append(["a program may use", limit])
    return [[what, tables.mib(size)] for what, size in rows]

  def _collective_rows(self):
    """Those of a kind along the same dimensions in one row."""
    rows = collections.defaultdict(lambda: [0, 0, 0, 0])
    for kept in self.collectives:
      row = rows[kept.kind, ", ".join(kept.axes)]
      row[0] += kept.times
      row[1] += kept.times * kept.bytes
      row[2] += kept.times * kept.asynchronous
      row[3] += kept.times * kept.products
    return [[*key, times, tables.mib(size), started or "none", products]
            for key, (times, size, started, products) in sorted(rows.items())
            ] or [["nothing", "", "", "", "", ""]]


@dataclasses.dataclass(frozen=True)
class Refused:
  """A step that the compiler found no room for.

  Attributes:
    target: the `Target`.
    seconds: until it said so.
    said: its words.
  """
  target: Target
  seconds: float
  said: str

  def findings(self) -> list[str]:
    """Sentences on what is wrong."""
    return [_does_not_fit(self.said)]

  def text(self) -> str:
    """For a terminal."""
    return (f"not compiled for {self.target}: it does not fit, as the compiler "
            f"said after {self.seconds:.0f} s")


def _does_not_fit(why):
  return f"the step does not fit into the memory of the chip ({why}): {_REMEDY}"
