"""Mutants of the choice: gates, ties, masks, weights, losses, policies.

Letters: `s` is the group size and `x` the experts, after any number of batch
dimensions.
"""

import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
import dataclasses

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import selection
from tests.mutations import seams

assert mtf_moe

MUTANTS = seams.Mutants()

BY_HAND = ["tests/gating/top_2_test.py"]
ORACLE = ["tests/oracle", "-k", "policies"]

GATES = "gating.router:Scores.gates"
FULL = "gating.router:Scores.full"
USED = "gating.router:Scores.used"
LOGITS = "gating.router:Router.prepare_logits"
LIKELIEST = "gating.selection:likeliest"
TOP_2 = "gating.top_2:Top2.choose"
BALANCE_LOSS = "gating.losses:balance_loss"
WITHOUT_FIRST = "gating.losses:without_first_choice"
ROUTE = "gating.base:route"
POLICY = "gating.second_policy:used"


@MUTANTS.breaks(1, "gates in bfloat16", GATES, ORACLE)
def gates_in_bfloat16(gates, scores):
  return mtf.to_float(mtf.to_bfloat16(gates(scores)))


@MUTANTS.breaks(1, "a bias", LOGITS, ORACLE)
def a_bias(prepare_logits, router, logits, settings, train):
  bias = mtf.get_variable(
      logits.mesh, "bias", mtf.Shape(logits.shape.dims[-1:]))
  return prepare_logits(router, logits, settings, train) + bias


@MUTANTS.breaks(2, "ties to the highest index", LIKELIEST, BY_HAND)
def ties_to_the_highest_index(likeliest, gates, experts_dim):
  gate, _ = likeliest(gates, experts_dim)
  numbers = mtf.range(gates.mesh, experts_dim, gates.dtype)  # From 0.
  are_largest = mtf.to_float(mtf.equal(gates, gate))
  return gate, mtf.to_int32(mtf.reduce_max(
      are_largest * numbers, reduced_dim=experts_dim))


@MUTANTS.breaks(2, "no gradient through the first weight", TOP_2, ORACLE)
def no_gradient_through_the_first_weight(choose, router, scores):
  choice = choose(router, scores)
  first, second = choice.weights
  return dataclasses.replace(
      choice, weights=[mtf.stop_gradient(first), second])


@MUTANTS.breaks(3, "first choices at any importance", FULL, BY_HAND)
def first_choices_at_any_importance(full, scores):
  del full
  return scores.used


@MUTANTS.breaks(3, "a first choice that does not count is left out of the "
                "second", TOP_2, BY_HAND)
def first_mask_at_any_importance(choose, router, scores):
  choice = choose(router, scores)
  first, _ = choice.experts
  x = scores.experts_dim
  _, second = selection.likeliest(
      scores.gates * (1.0 - mtf.one_hot(first, x)), x)
  return dataclasses.replace(choice, experts=[first, second])


@MUTANTS.breaks(3, "a first choice that does not count has its share of the "
                "weights", TOP_2, BY_HAND)
def first_gate_at_any_importance(choose, router, scores):
  choice = choose(router, scores)
  first, second = choice.weights
  # The expert is the same one, so that its gate counts twice.
  return dataclasses.replace(
      choice, weights=[first, second * (0.5 + 0.5 * scores.full)])


@MUTANTS.breaks(3, "density of first choices that do not count", BALANCE_LOSS,
                BY_HAND)
def density_at_any_importance(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  none = 1.0 - mtf.reduce_sum(mask, reduced_dim=experts_dim)  # [..., s]
  return balance_loss(
      mask + none / experts_dim.size, gates, group_dim, experts_dim, counted)


@MUTANTS.breaks(3, "density proxy of tokens that do not count", BALANCE_LOSS,
                BY_HAND)
def density_proxy_at_any_importance(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  none = 1.0 - mtf.reduce_sum(gates, reduced_dim=experts_dim)  # [..., s]
  return balance_loss(
      mask, gates + none / experts_dim.size, group_dim, experts_dim, counted)


@MUTANTS.breaks(4, "second choices of padding", USED, BY_HAND)
def second_choices_of_padding(used, scores):
  return mtf.ones_like(used(scores))


@MUTANTS.breaks(5, "gates not normalized", TOP_2, BY_HAND)
def gates_not_normalized(choose, router, scores):
  choice = choose(router, scores)
  x = scores.experts_dim
  return dataclasses.replace(choice, weights=[
      mtf.reduce_sum(scores.gates * mtf.one_hot(expert, x), reduced_dim=x)
      for expert in choice.experts])


@MUTANTS.breaks(5, "normalized over the choices in use", TOP_2, ORACLE)
def normalized_over_the_choices_in_use(choose, router, scores):
  choice = choose(router, scores)
  used = mtf.add_n([
      weight * wanted for weight, wanted in zip(choice.weights, choice.wanted)])
  return dataclasses.replace(choice, weights=[
      weight / mtf.maximum(used, losses.EPSILON) for weight in choice.weights])


@MUTANTS.breaks(6, "mean of the product", BALANCE_LOSS, BY_HAND)
def mean_of_the_product(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  del balance_loss, group_dim, counted
  return mtf.reduce_mean(mask * gates) * float(experts_dim.size ** 2)


@MUTANTS.breaks(6, "not times the square of the experts", BALANCE_LOSS, BY_HAND)
def not_times_the_square_of_the_experts(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  return balance_loss(
      mask, gates, group_dim, experts_dim, counted) / experts_dim.size


@MUTANTS.breaks(6, "unimportant tokens left out of the mean", BALANCE_LOSS,
                BY_HAND)
def unimportant_tokens_left_out_of_the_mean(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  del counted
  with_a_choice = mtf.reduce_sum(mask, reduced_dim=experts_dim)
  return balance_loss(mask, gates, group_dim, experts_dim, with_a_choice)


@MUTANTS.breaks(7, "counts in full", WITHOUT_FIRST, BY_HAND)
def second_place_counts_in_full(without_first_choice, gates_left, experts_dim):
  return 2.0 * without_first_choice(gates_left, experts_dim)


@MUTANTS.breaks(7, "gates left not normalized", WITHOUT_FIRST, BY_HAND)
def gates_left_not_normalized(without_first_choice, gates_left, experts_dim):
  del without_first_choice, experts_dim
  return gates_left


@MUTANTS.breaks(7, "proxy without padding", BALANCE_LOSS, BY_HAND)
def proxy_without_padding(
    balance_loss, mask, gates, group_dim, experts_dim, counted=None):
  with_a_choice = mtf.reduce_sum(mask, reduced_dim=experts_dim)
  return balance_loss(
      mask, gates * with_a_choice, group_dim, experts_dim, counted)


@MUTANTS.breaks(8, "not divided by microbatches", ROUTE, BY_HAND)
def not_divided_by_microbatches(route, *args, num_microbatches=None, **kwargs):
  del num_microbatches
  return route(*args, **kwargs)


@MUTANTS.breaks(9, "at the threshold is enough", POLICY, BY_HAND)
def at_the_threshold_is_enough(used, gate, settings, train):
  policy, threshold = settings.second_policy(train)
  if policy == "threshold":
    return mtf.to_float(mtf.greater_equal(gate, threshold))
  return used(gate, settings, train)


@MUTANTS.breaks(9, "drawn at the probability is enough", POLICY, BY_HAND)
def drawn_at_the_probability_is_enough(used, gate, settings, train):
  policy, threshold = settings.second_policy(train)
  if policy == "random":
    drawn = mtf.random_uniform(gate.mesh, gate.shape)
    return mtf.to_float(mtf.less_equal(drawn, gate / max(threshold, 1e-9)))
  return used(gate, settings, train)


@MUTANTS.breaks(9, "below the threshold as above it", POLICY, BY_HAND)
def not_divided_by_the_threshold(used, gate, settings, train):
  policy, threshold = settings.second_policy(train)
  if policy == "random":
    gate *= max(threshold, 1e-9)
  return used(gate, settings, train)


@MUTANTS.breaks(9, "one number for all tokens", POLICY, BY_HAND)
def one_number_for_all_tokens(used, gate, settings, train):
  policy, threshold = settings.second_policy(train)
  if policy == "random":
    drawn = mtf.random_uniform(gate.mesh, mtf.Shape([]))
    return mtf.to_float(mtf.less(drawn, gate / max(threshold, 1e-9)))
  return used(gate, settings, train)
