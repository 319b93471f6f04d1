"""What TensorFlow's trace of a step tells: memory, and time by operation."""

import collections
import re

_LABEL = re.compile(r"(?P<name>.*) = (?P<type>.*)\((?P<inputs>.*)\)")


def time_by_type(step_stats):
  """Milliseconds that operations of each type took, and how many there were.

  Those of operations that ran side by side are added up.

  Args:
    step_stats: a StepStats.

  Returns:
    {type: (milliseconds, operations)}
  """
  totals = collections.defaultdict(lambda: (0.0, 0))
  for node in _nodes(step_stats):
    label = _LABEL.match(node.timeline_label)
    kind = label["type"] if label else "other"
    time, count = totals[kind]
    taken = node.op_end_rel_nanos - node.op_start_rel_nanos
    totals[kind] = time + taken / 1e6, count + 1
  return dict(totals)


def peak_megabytes(step_stats):
  """The most memory that the results of operations held at one time, in MB.

  A result is held until the last operation that uses it ends. Several can lie
  in one place, such as those of a reshape or what a variable is read to, and
  count once, for which TensorFlow's own sum (Timeline.analyze_step_stats) is
  up to half larger. What an operation needs while it runs is not known.

  Args:
    step_stats: a StepStats.
  """
  results = {}  # [start, end, bytes, address], by name as in labels.
  for node in _nodes(step_stats):
    for i, output in enumerate(node.output):
      place = output.tensor_description.allocation_description
      name = f"{node.node_name}:{i}" if i else node.node_name
      results[name] = [
          *_interval(node), place.requested_bytes, place.ptr]
  for node in _nodes(step_stats):
    label = _LABEL.match(node.timeline_label)
    _, end = _interval(node)
    for name in label["inputs"].split(", ") if label else []:
      if name in results:
        results[name][1] = max(results[name][1], end)

  by_address = collections.defaultdict(list)
  for start, end, size, address in results.values():
    by_address[address].append((start, end, size))
  changes = []  # (time, bytes more)
  for held in by_address.values():
    for start, end, size in _merged(sorted(held)):
      changes += [(start, size), (end, -size)]
  peak = current = 0
  for _, change in sorted(changes):
    current += change
    peak = max(peak, current)
  return peak / 1e6


def _nodes(step_stats):
  return [node for device in step_stats.dev_stats
          for node in device.node_stats]


def _interval(node):
  start = node.all_start_micros
  return start, start + node.all_end_rel_micros


def _merged(held):
  """Joins the (start, end, bytes) that overlap, in order of their start."""
  merged = []
  for start, end, size in held:
    if merged and start <= merged[-1][1]:
      last_start, last_end, last_size = merged[-1]
      merged[-1] = last_start, max(last_end, end), max(last_size, size)
    else:
      merged.append((start, end, size))
  return merged
