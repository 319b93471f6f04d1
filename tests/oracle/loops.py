"""The layer in plain loops over tokens, in NumPy.

Written from the description of the layer alone, for others to be held against:
no tensors of masks, no mtf, one token after the other, in float64. Only where
the description speaks of a type is there rounding.

One decision is then left open: in float32, two equal gates get the weights 0.5
and 0.5, give or take the last bit, and a weight above 0.5 makes the slot's
token a preferred one at the second level. Such cases are counted.
"""

import dataclasses

import numpy as np
import tensorflow.compat.v1 as tf

EPSILON = 1e-9
# Float32 decides alike on numbers that are further apart.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Sent:
  """A token's place in the buffer of an expert.

  Attributes:
    rank: 0 for a first choice, 1 for a second.
    expert: the number of the expert.
    slot: the number of the slot.
    weight: rounded to the type of the activations. Where it is 0, the slot is
      taken but nothing is sent.
  """

  rank: int
  expert: int
  slot: int
  weight: float


@dataclasses.dataclass(frozen=True)
class Group:
  """One group after routing.

  Attributes:
    chosen: the first and the second choice of each token, used or not.
    sent: the places of each token.
    balance_loss: the balancing losses.
    z_sum: sum of the squared log-partition functions.
    z_count: of how many tokens.
    undecided: how many second gates are too near to what they are compared
      with for float32.
  """

  chosen: list[tuple]
  sent: list[list[Sent]]
  balance_loss: float
  z_sum: float
  z_count: int
  undecided: int

  def decisions(self):
    """Everything but the weights, as a value that can be compared."""
    return self.chosen, [
        [(s.rank, s.expert, s.slot, s.weight != 0) for s in places]
        for places in self.sent]


@dataclasses.dataclass(frozen=True)
class Result:
  """What the layer computed.

  Attributes:
    output: [a, b, l, n].
    loss: scalar.
    capacities: (c, d).
    levels: the groups of the first and of the second level: lists in the order
      of [a, g] and [x, h].
    weights: [a, b, l, x, y], the share of every expert in every token.
    undecided: how many decisions float32 may take in another way.
  """

  output: np.ndarray
  loss: float
  capacities: tuple[int, int]
  levels: tuple[list[Group], list[Group]]
  weights: np.ndarray
  undecided: int

  def decisions(self):
    return [group.decisions() for level in self.levels for group in level]


def group_size(num_tokens, target, ways):
  """The largest that divides the tokens and fits the mesh, in groups of which
  there are no fewer than whole ones of the target size would be."""
  return max(size for size in range(1, num_tokens + 1)
             if num_tokens % size == 0 and num_tokens // size % ways == 0
             and num_tokens // size >= num_tokens // target)


def capacity(size, factor, num_experts, minimum):
  return max(min(size, int(size * factor / num_experts)), minimum)


def route(logits, importance, slots, case, uniforms):
  """Routes the tokens of one group.

  Args:
    logits: [s, x].
    importance: [s].
    slots: the capacity.
    case: the Case, for policy, second-place loss and type.
    uniforms: [s], what "random" draws.

  Returns:
    a Group
  """
  num_tokens, num_experts = logits.shape
  density, proxy = np.zeros([2, num_experts]), np.zeros([2, num_experts])
  z_sum, z_count, undecided = 0.0, 0, 0
  chosen = []
  wishes = []  # Of each token: (expert or None, weight) as first and second.
  for token in range(num_tokens):
    highest = logits[token].max()
    partition = np.exp(logits[token] - highest).sum()
    gates = np.exp(logits[token] - highest) / partition
    gates[gates < np.finfo(np.float32).tiny] = 0.0  # As float32 has it.
    first, first_gate, left = None, 0.0, gates.copy()
    if importance[token] == 1.0:
      first = int(np.argmax(gates))  # The lowest index, if there are several.
      first_gate = gates[first]
      left[first] = 0.0
      density[0][first] += 1
      proxy[0] += gates
      z_sum += (highest + np.log(partition)) ** 2
      z_count += 1
    second = int(np.argmax(left))
    if importance[token] > 0:
      density[1][second] += 1
    proxy[1] += left / (left.sum() + EPSILON)
    total = first_gate + left[second] + EPSILON
    second_gate = left[second] / total
    bar = {
        "all": -1.0, "none": 2.0, "threshold": case.threshold,
        "random": uniforms[token] * max(case.threshold, EPSILON),
    }[case.policy]
    wanted = importance[token] > 0 and second_gate > bar
    undecided += second_gate > 0 and abs(second_gate - bar) < ROUNDING
    chosen.append((first, second))
    wishes.append([(first, first_gate / total),
                   (second if wanted else None, second_gate)])

  taken = [0] * num_experts
  sent = [[] for _ in range(num_tokens)]
  for rank in (0, 1):
    for token in range(num_tokens):
      expert, weight = wishes[token][rank]
      if expert is not None and taken[expert] < slots:
        sent[token].append(
            Sent(rank, expert, taken[expert], rounded(weight, case.dtype)))
        taken[expert] += 1

  losses = [np.mean(density[rank] / num_tokens * proxy[rank] / num_tokens)
            * num_experts ** 2 for rank in (0, 1)]
  balance = losses[0] + (0.5 * losses[1] if case.second_place_loss else 0.0)
  return Group(chosen, sent, balance, z_sum, z_count, undecided)


def layer(case, inputs, importance, weights):
  """The two levels.

  Args:
    case: the Case.
    inputs: [a, b, l, m].
    importance: [a, b, l].
    weights: a dict of arrays by variable name.

  Returns:
    a Result
  """
  a, b, l, m = inputs.shape
  num_x, num_y = case.experts
  rules = dict(rule.split(":") for rule in case.layout.split(","))
  mesh = dict(zip(("outer", "batch"), case.mesh))
  ways_a = mesh.get(rules.get("outer_batch"), 1) if len(case.shape) == 3 else 1
  ways_b = mesh.get(rules.get("batch"), 1)
  factor_x, factor_y = case.capacity_factors

  s = group_size(b * l, case.group_size, ways_b)
  g = b * l // s
  c = capacity(s, factor_x, num_x, case.min_capacity)
  tokens = inputs.reshape(a, g, s, m)
  importance = importance.reshape(a, g, s)
  uniforms = case.uniforms(0, [a, g, s])
  first_level = [
      [route(tokens[i, j] @ weights["outer_gating/kernel"], importance[i, j], c,
             case, uniforms[i, j]) for j in range(g)] for i in range(a)]

  slot_tokens = np.zeros([num_x, a, g, c, m])
  slot_importance = np.zeros([num_x, a, g, c])
  undecided = 0
  for i, j, token in np.ndindex(a, g, s):
    for place in first_level[i][j].sent[token]:
      if place.weight != 0:
        slot = place.expert, i, j, place.slot
        slot_tokens[slot] = tokens[i, j, token]
        slot_importance[slot] = 1.0 if place.weight > 0.5 else 0.5
        undecided += (case.dtype == tf.float32
                      and abs(place.weight - 0.5) < ROUNDING)

  t = group_size(a * g * c, case.group_size, ways_a)
  h = a * g * c // t
  d = capacity(t, factor_y, num_y, case.min_capacity)
  slot_tokens = slot_tokens.reshape(num_x, h, t, m)
  slot_importance = slot_importance.reshape(num_x, h, t)
  uniforms = case.uniforms(1, [num_x, h, t])
  second_level = [
      [route(slot_tokens[x, k] @ weights["inner_gating/kernel"][x],
             slot_importance[x, k], d, case, uniforms[x, k])
       for k in range(h)] for x in range(num_x)]

  wi = rounded(weights["wi/kernel"], case.dtype)
  wo = rounded(weights["wo/kernel"], case.dtype)
  n = wo.shape[-1]
  slot_outputs = np.zeros([num_x, h, t, n])
  slot_weights = np.zeros([num_x, h, t, num_y])
  for x, k, slot in np.ndindex(num_x, h, t):
    for place in second_level[x][k].sent[slot]:
      if place.weight != 0:
        y = place.expert
        hidden = rounded(np.maximum(
            slot_tokens[x, k, slot] @ wi[y, x], 0.0), case.dtype)
        slot_outputs[x, k, slot] += place.weight * rounded(
            hidden @ wo[y, x], case.dtype)
        slot_weights[x, k, slot, y] += place.weight

  slot_outputs = rounded(slot_outputs, case.dtype).reshape(num_x, a, g, c, n)
  slot_weights = slot_weights.reshape(num_x, a, g, c, num_y)
  outputs = np.zeros([a, g, s, n])
  shares = np.zeros([a, g, s, num_x, num_y])
  for i, j, token in np.ndindex(a, g, s):
    for place in first_level[i][j].sent[token]:
      slot = place.expert, i, j, place.slot
      outputs[i, j, token] += place.weight * slot_outputs[slot]
      shares[i, j, token, place.expert] += place.weight * slot_weights[slot]

  levels = [group for row in first_level for group in row], [
      group for row in second_level for group in row]
  return Result(
      output=rounded(outputs, case.dtype).reshape(a, b, l, n),
      loss=_loss(levels, case), capacities=(c, d), levels=levels,
      weights=shares.reshape(a, b, l, num_x, num_y),
      undecided=undecided + sum(
          group.undecided for level in levels for group in level))


def _loss(levels, case):
  """The balancing losses, rounded one by one, times a weight; the z-losses."""
  parts = case.num_microbatches or 1
  balance, z_loss = 0.0, 0.0
  for groups in levels:
    balance += rounded(
        np.mean([group.balance_loss for group in groups]) / parts, case.dtype)
    if case.train and case.z_loss is not None:
      count = sum(group.z_count for group in groups)
      mean = sum(group.z_sum for group in groups) / max(count, 1)
      z_loss += case.z_loss * mean / parts
  return case.loss_coef * balance + z_loss


def rounded(x, dtype):
  """To bfloat16 where that is the type; otherwise as it is."""
  if dtype != tf.bfloat16:
    return x
  return np.asarray(x).astype(dtype.as_numpy_dtype).astype(np.float64)[()]
