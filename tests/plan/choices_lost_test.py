"""What a plan says of choices that find no slot."""

import dataclasses

import pytest

from mtf_moe.plan import mixtures
from mtf_moe.plan import report
from tests.plan import plan_test


def test_one_choice():
  """A token that loses its first one reaches none, and never fewer."""
  balanced = mixtures.balanced(*plan_test.sized(
      x=2, y=1, s=16, c=8, t=8, d=8, moe_second_policy_train="none"))
  assert balanced.lost_tokens > 0.05
  first, second = balanced.first_choices_lost
  assert first == pytest.approx(balanced.lost_tokens)
  assert second == balanced.fewer_experts == 0


def test_second_choices_are_lost_without_a_token_being():
  """Slots for all first choices, and for no second one, at level one."""
  balanced = mixtures.balanced(*plan_test.sized(
      x=2, y=2, s=16, c=16, t=32, d=16, moe_second_policy_train="all"))
  assert balanced.first_choices_lost[0] == 0
  room = mixtures.balanced(*plan_test.sized(
      x=2, y=2, s=16, c=16, t=32, d=32, moe_second_policy_train="all"))
  assert room.fewer_experts == 0 and room.experts_per_token == 3.0
  assert balanced.experts_per_token < 3.0 and balanced.lost_tokens < 0.05
  assert balanced.fewer_experts > 0.3


def test_experts_that_choose():
  balanced = mixtures.balanced(*plan_test.sized(
      x=2, y=1, s=16, c=8, t=8, d=8,
      moe_gating=("expert_choice", "expert_choice")))
  assert balanced.first_choices_lost == (None, None)


def test_it_is_said():
  made = plan_test.planning.make(plan_test.configured())
  mixture, = made.mixtures
  balanced = mixtures.Balanced(0.0, 0.001, 1.25, 0.4, (0.05, 0.125))
  text = report._mixture_text(
      dataclasses.replace(mixture, balanced=balanced))
  assert "reaches 1.25 experts on average, 0.1% of them reach none;" in text
  assert ("40.0% of tokens reach fewer experts than they choose; of first "
          "choices, 5.0% at level one (outer), 12.5% at level two (inner) find "
          "no slot") in text
  assert "like all experts equally" in text
  unknown = dataclasses.replace(balanced, first_choices_lost=(None, None))
  assert "first choices" not in report._mixture_text(
      dataclasses.replace(mixture, balanced=unknown))
