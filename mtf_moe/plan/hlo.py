"""Reads what a compiler kept of a step: the text of a scheduled HLO module.

Its instructions stand in the order in which they run. A collective is one
instruction that everything waits for, or a start and a done, between which
others run.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re

import numpy as np

_KINDS = ("all-to-all", "all-reduce", "all-gather", "reduce-scatter",
          "collective-permute", "ragged-all-to-all", "collective-broadcast")
_PRODUCTS = ("convolution", "dot", "ragged-dot")  # On a TPU, the first.


@dataclasses.dataclass(frozen=True)
class Kept:
  """A collective that the compiler kept, as often as it runs in a step.

  Attributes:
    kind: its name in HLO, such as "all-to-all".
    axes: names of the mesh dimensions along which cores communicate; all of
      them where it is not by their groups.
    times: how often it runs in a step.
    bytes: on one core, of its results, each time.
    asynchronous: whether other instructions run between its start and its end.
    products: how many instructions with products are among them.
  """
  kind: str
  axes: tuple[str, ...]
  times: int
  bytes: int
  asynchronous: bool
  products: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # Operands and attributes.

  def attribute(self, pattern):
    """The first group of a pattern in the attributes, or None."""
    found = re.search(rf"\b{pattern}", self.rest)
    return found and found[1]

  @property
  def operand(self):
    """The name of the first one."""
    found = re.match(r"%([^\s,)]+)", self.rest)
    return found and found[1]

  @property
  def called(self):
    """Names of the computations that it calls, not once for each element."""
    return re.findall(
        r"(?:calls|body|to_apply|(?:true|false)_computation)=%([^\s,}]+)",
        self.rest) + [
            name.strip(" %") for names in re.findall(
                r"branch_computations=\{(.*?)\}", self.rest)
            for name in names.split(",")]


def collectives(text: str, mesh: Mapping[str, int]) -> list[Kept]:
  """Finds collectives, in loops as well.

  Args:
    text: of a module that is scheduled.
    mesh: the sizes of its mesh's dimensions, by name, in order.

  Returns:
    a list of `Kept`, in the order in which they start
  """
  return list(_Module(text).collectives(mesh))


class _Module:
  """Computations by name, each a list of instructions in order."""

  def __init__(self, text):
    self._computations, self._entry = _parse(text)
    self._with_products = set()
    for name, instructions in self._computations.items():
      # What one calls comes before it.
      if any(map(self._has_product, instructions)):
        self._with_products.add(name)

  def collectives(self, mesh) -> Iterator[Kept]:
    yield from self._kept_in(self._entry, 1, mesh)

  def _kept_in(self, computation, times, mesh):
    instructions = self._computations[computation]
    ends = {}  # Of an asynchronous one, by the name of its start: its place.
    for place, instruction in enumerate(instructions):
      if instruction.opcode.endswith("-done"):
        ends[instruction.operand] = place
    for place, instruction in enumerate(instructions):
      if instruction.opcode == "while":
        yield from self._kept_in(
            instruction.attribute(r"body=%([^\s,]+)"),
            times * self._trips(instruction), mesh)
      elif instruction.opcode in ("call", "conditional"):
        for called in instruction.called:
          yield from self._kept_in(called, times, mesh)
      elif found := self._collective(instruction):
        kind, of_groups = found
        end = ends.get(instruction.name)
        yield Kept(
            kind, _axes(of_groups, mesh), times,
            _bytes(instructions[end or place].type), end is not None,
            sum(map(self._has_product, instructions[place:end]))
            if end is not None else 0)

  def _collective(self, instruction):
    """(kind, the instruction with the groups) of one, or of its start."""
    if instruction.opcode.endswith("-done"):
      return None
    kind = instruction.opcode.removesuffix("-start")
    if kind in _KINDS:
      return kind, instruction
    if instruction.opcode in ("async-start", "fusion"):
      return next(filter(None, (
          self._collective(inner) for called in instruction.called
          for inner in self._computations[called])), None)
    return None

  def _has_product(self, instruction):
    return instruction.opcode in _PRODUCTS or not (
        self._with_products.isdisjoint(instruction.called))

  def _trips(self, loop):
    """How often a loop runs: a counter from 0 is compared with a constant."""
    known = loop.attribute(r'known_trip_count":\{"n":"(\d+)')
    if known:
      return int(known)
    condition = self._computations[loop.attribute(r"condition=%([^\s,]+)")]
    limits = [instruction.rest.partition(")")[0] for instruction in condition
              if instruction.opcode == "constant"]
    if len(limits) == 1 and any(
        instruction.attribute("direction=(LT)") for instruction in condition):
      return int(limits[0])
    return 1


_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) "
    r"(?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$")


def _parse(text):
  """(instructions by computation, the name of the entry)."""
  computations, entry = {}, None
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations[found[2]] = []
      entry = found[2] if found[1] else entry
    elif found := _INSTRUCTION.match(line):
      current.append(_Instruction(**found.groupdict()))
  return computations, entry


def _bytes(type_text):
  """Of a type, or of all types of a tuple."""
  return sum(
      math.prod(_integers(sizes) if sizes else ()) * _item_bytes(dtype)
      for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", type_text))


def _item_bytes(dtype):
  """Of "f32", "bf16", "f8e4m3fn", "pred"."""
  bits = re.match(r"[a-z]+(\d+)", dtype)
  return max(int(bits[1]) // 8, 1) if bits else 1


def _axes(instruction, mesh):
  """The dimensions of the mesh along which the cores of a group differ."""
  named = instruction.attribute(r"replica_groups=mesh\[.*?\] \{(.*?)\}")
  if named:
    return tuple(re.findall(r"'(\w+)'", named))
  group = _first_group(instruction)
  if group is None:
    return tuple(mesh)
  places = np.unravel_index(group, tuple(mesh.values()))
  return tuple(axis for axis, along in zip(mesh, places)
               if len(set(along.tolist())) > 1)


def _first_group(instruction):
  """Numbers of cores that communicate, or None for all.

  They are listed, or are the rows of a table of all numbers: "[4,2]<=[2,4]"
  shapes it anew, and "T(1,0)" says how it is transposed before that.
  """
  listed = instruction.attribute(
      r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
  if listed:
    return _integers(listed)
  table = re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
      instruction.rest)
  if not table:
    return None
  sizes = _integers(table[2])
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  if table[3]:
    numbers = numbers.transpose(_integers(table[3]))
  return numbers.reshape(_integers(table[1]))[0]


def _integers(text):
  return [int(number) for number in text.split(",")]
