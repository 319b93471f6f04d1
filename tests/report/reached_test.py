"""What a report says of tokens through all levels of a layer."""

import pytest

from mtf_moe.report import mixtures
from mtf_moe.report import overview
from mtf_moe.report import verdicts
from tests.report import event_files
from tests.report.arithmetic_test import made
from tests.report.event_files import LAYERS


def whole(layer, used=8, no_expert=0, fewer=0, each=1.25):
  return {f"moe/{layer}/layer/tokens/{name}": value for name, value in {
      "used": used, "no_expert": no_expert, "fewer_experts": fewer,
      "experts_each": each}.items()}


def judged(first, second, outer=None):
  """The verdicts on two layers, as pairs, and the facts of the overview."""
  run = made({1: {**event_files.mixture(LAYERS[0], outer),
                  **event_files.mixture(LAYERS[1]), **first, **second}})
  layers = mixtures.find(run)
  return ([(one.kind, one.text) for one in verdicts.judge(run, layers)],
          overview._facts(run, layers))


def test_lost_second_choices_are_no_warning():
  """In the same records, level one alone would be one: 12% are lost there."""
  found, facts = judged(
      whole(LAYERS[0], fewer=4, each=1.5), whole(LAYERS[1], each=0.75))
  assert (verdicts.GOOD, "At most 0% of tokens reach no expert in layer 1 "
          "(block_000/layer_001), through all levels; 50% reach fewer than "
          "they chose. In layer 2 (block_001/layer_001), a token has 0.75 "
          "experts on average.") in found
  assert not any("find no expert" in text for _, text in found)
  assert ("Without any expert", "0%", "of the tokens, in layer 1 "
          "(block_000/layer_001), the worst; 1.50 experts a token there"
          ) in facts


@pytest.mark.parametrize("outer, most", [
    # 22% of what arrives at level two is lost there, and 12% at level one.
    (None, "Most are lost at level two (inner): raise "
     "MoE2D.capacity_factor_second_level (now 1.0)."),
    ({"tokens/lost": 4, "load/max_over_mean": 1.8},
     "Most are lost at level one (outer), as the busiest expert is wanted 1.8 "
     "times as often as the average one: raise MoE2D.loss_coef (now 0.01).")])
def test_tokens_without_any_expert(outer, most):
  # Of sixteen, one: 6%, where 5% may be.
  found, _ = judged(whole(LAYERS[0], used=16, no_expert=1),
                    whole(LAYERS[1], used=16), outer)
  warning = next(text for kind, text in found if "no expert in" in text
                 and kind == verdicts.WARNING)
  assert warning.startswith("6.2% of tokens reach no expert in layer 1 ")
  assert warning.endswith(most)
  # And where they are lost, level by level.
  assert any("find no expert at level one" in text for _, text in found)


def test_shares_are_of_the_last_records():
  """Of five: none of eight tokens before, then one."""
  steps = {step: event_files.mixture(LAYERS[0])
           | whole(LAYERS[0], no_expert=float(step > 5), each=step)
           for step in range(1, 11)}
  layer, = mixtures.find(made(steps))
  assert layer.reached_now() == mixtures.Reached(1 / 8, 0.0, 8.0)


def test_runs_of_earlier_releases():
  layer, = mixtures.find(made({1: event_files.mixture(LAYERS[0])}))
  assert layer.reached_now() is None
