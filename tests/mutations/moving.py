"""Mutants of what follows a choice: slots, dispatch, levels, groups.

Letters: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
import copy
import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from tests.mutations import seams

assert mtf_moe

MUTANTS = seams.Mutants()

BY_HAND = ["tests/gating/top_2_test.py"]
GROUPING = ["tests/grouping_test.py"]
ORACLE = ["tests/oracle", "-k", "policies"]
SPECIAL = ["tests/oracle", "-k", "special"]
MESHES = ["tests/oracle", "-k", "meshes"]

TOP_2 = "gating.top_2:Top2.choose"
BUFFERS = "gating.routing:fill_buffers"
DISPATCH = "gating.routing:Routing.dispatch_tensor"
SLOT_IMPORTANCE = "gating.routing:TokenRouting.slot_importance"
MIXTURE = "layer:Mixture.__call__"
LAYER = "layer:transformer_moe_layer_v2"
LEVELS = "hparams:MoeHparams.levels"
CAPACITY = "grouping:expert_capacity"
GROUPS = "grouping:_split_into_groups"
SIZE = "levels:size"


def _with_more_slots(capacity_dim, number):
  return mtf.Dimension(capacity_dim.name, capacity_dim.size + number)


@MUTANTS.breaks(10, "inclusive count", BUFFERS, BY_HAND)
def inclusive_count(
    fill_buffers, experts, gates, wanted, experts_dim, capacity_dim, *order):
  return tuple(
      dataclasses.replace(choice, position=choice.position + 1)
      for choice in fill_buffers(
          experts, gates, wanted, experts_dim,
          _with_more_slots(capacity_dim, -1), *order))


@MUTANTS.breaks(10, "second choices not behind the first", BUFFERS, BY_HAND)
def second_choices_not_behind_the_first(
    fill_buffers, experts, gates, wanted, experts_dim, capacity_dim, *order):
  return tuple(
      fill_buffers(
          [expert], [gate], [wants], experts_dim, capacity_dim, *order)[0]
      for expert, gate, wants in zip(experts, gates, wanted))


@MUTANTS.breaks(11, "one slot too many", BUFFERS, BY_HAND)
def one_slot_too_many(
    fill_buffers, experts, gates, wanted, experts_dim, capacity_dim, *order):
  return fill_buffers(experts, gates, wanted, experts_dim,
                      _with_more_slots(capacity_dim, 1), *order)


@MUTANTS.breaks(11, "the first weight takes the rest", TOP_2, ORACLE)
def the_first_weight_takes_the_rest(choose, router, scores):
  choice = choose(router, scores)
  first, second = choice.weights
  return dataclasses.replace(choice, weights=[
      first + second * (1.0 - choice.wanted[1]), second])


@MUTANTS.breaks(12, "dispatch from the weights in float32", DISPATCH, BY_HAND)
def dispatch_from_float32(dispatch_tensor, routed, combine_tensor):
  return mtf.cast(
      dispatch_tensor(routed, routed.combine_tensor(tf.float32)),
      combine_tensor.dtype)


@MUTANTS.breaks(12, "a gate of zero holds no slot", BUFFERS, BY_HAND)
def a_gate_of_zero_holds_no_slot(
    fill_buffers, experts, gates, wanted, experts_dim, capacity_dim, *order):
  wanted = [wants * mtf.to_float(mtf.greater(gate, 0.0))
            for wants, gate in zip(wanted, gates)]
  return fill_buffers(
      experts, gates, wanted, experts_dim, capacity_dim, *order)


@MUTANTS.breaks(12, "a gradient through dispatch", DISPATCH, BY_HAND)
def a_gradient_through_dispatch(dispatch_tensor, routed, combine_tensor):
  return (dispatch_tensor(routed, combine_tensor)
          + combine_tensor - mtf.stop_gradient(combine_tensor))


@MUTANTS.breaks(13, "losses added before they are cast", MIXTURE, ORACLE)
def losses_added_before_they_are_cast(call, mixture, *args, **kwargs):
  outputs, (first, *others) = call(mixture, *args, **kwargs)
  losses = [routed.balance_loss for routed in (first, *others)]  # float32
  return outputs, [
      dataclasses.replace(first, balance_loss=mtf.add_n(losses)),
      *[dataclasses.replace(
          routed, balance_loss=mtf.zeros_like(routed.balance_loss))
        for routed in others]]


@MUTANTS.breaks(14, "half is enough", SLOT_IMPORTANCE, SPECIAL)
def half_is_enough(slot_importance, routed, weights, in_slots):
  return mtf.maximum(
      slot_importance(routed, weights, in_slots),
      mtf.to_float(mtf.greater_equal(weights, 0.5)))


@MUTANTS.breaks(14, "from the weights in float32", SLOT_IMPORTANCE, SPECIAL)
def importance_from_float32(slot_importance, routed, weights, in_slots):
  del weights
  return slot_importance(routed, in_slots(routed), in_slots)


@MUTANTS.breaks(15, "rounded to the nearest", CAPACITY, GROUPING)
def capacity_rounded_to_the_nearest(
    expert_capacity, group_size, capacity_factor, num_experts, min_capacity):
  del expert_capacity
  even_share = round(group_size * capacity_factor / num_experts)
  return max(min(group_size, even_share), min_capacity)


@MUTANTS.breaks(15, "the minimum no more than the group", CAPACITY, GROUPING)
def minimum_no_more_than_the_group(expert_capacity, group_size, *args):
  return min(group_size, expert_capacity(group_size, *args))


@MUTANTS.breaks(15, "the first level's factor at the second", LEVELS, ORACLE)
def first_factor_at_the_second_level(levels, hparams):
  first, *others = levels(hparams)
  return (first, *[
      dataclasses.replace(
          level, capacity_factor_train=first.capacity_factor_train,
          capacity_factor_eval=first.capacity_factor_eval)
      for level in others])


@MUTANTS.breaks(16, "groups of every n-th token", LAYER, ORACLE)
def groups_of_every_nth_token(
    layer, inputs, *args, nonpadding=None, **kwargs):
  *outer, b, l, _ = inputs.shape.dims

  def there(x):  # [..., b, l, <rest>], tokens in the order of [..., l, b].
    rest = x.shape.dims[len(outer) + 2:]
    return mtf.reshape(mtf.transpose(x, [*outer, l, b, *rest]), x.shape)

  def back(x):
    rest = x.shape.dims[len(outer) + 2:]
    return mtf.transpose(mtf.reshape(x, [*outer, l, b, *rest]), x.shape)

  if nonpadding is not None:
    nonpadding = there(
        mtf.broadcast(nonpadding, mtf.Shape([*outer, b, l])))
  outputs, loss = layer(there(inputs), *args, nonpadding=nonpadding, **kwargs)
  return back(outputs), loss


@MUTANTS.breaks(17, "no group above the size asked for", GROUPS, GROUPING)
def no_group_above_the_size_asked_for(
    split_into_groups, n, max_group_size, mesh_dim_size):
  found = split_into_groups(n, max_group_size, mesh_dim_size)
  target = max_group_size
  while found[1] > max_group_size:
    target -= 1
    found = split_into_groups(n, target, mesh_dim_size)
  return found


def _unsplit(mesh, dim):
  """The same mesh, but for one dimension that it is said not to split."""
  changed = copy.copy(mesh)
  changed.ways = lambda other: 1 if other == dim else mesh.ways(other)
  return changed


@MUTANTS.breaks(17, "groups at level one whatever the mesh", SIZE, MESHES)
def groups_at_level_one_whatever_the_mesh(
    size, batch_dims, length, hparams, train, mesh):
  return size(batch_dims, length, hparams, train,
              _unsplit(mesh, batch_dims[-1]))


@MUTANTS.breaks(17, "groups at level two whatever the mesh", SIZE, MESHES)
def groups_at_level_two_whatever_the_mesh(
    size, batch_dims, length, hparams, train, mesh):
  return size(batch_dims, length, hparams, train,
              _unsplit(mesh, batch_dims[-2]))
