"""What the page says about its figures, with the parameters of the layers."""

from collections.abc import Iterable, Sequence

from mtf_moe import tags
from mtf_moe.report import mixtures
from mtf_moe.run import layer_facts
from mtf_moe.run.layer_facts import LayerFacts


class Names:
  """The parameters of layers, as gin has them, set as code."""

  def __init__(self, layers: Iterable[LayerFacts]):
    self._layers = list(layers)

  def of(self, name: str, number: int | None = None) -> str:
    """Such as "`MoE2D.loss_coef`", or several of that kind.

    Args:
      name: such as "loss_coef".
      number: the level, 0 for the first, or None for all of them.
    """
    return " or ".join(
        f"`{parameter.name}`" for parameter in layer_facts.parameters(
            self._layers, name, number))

  def set_to(self, name: str, value) -> str:
    """Such as "`MoE2D.z_loss = 0.001`", or several of that kind."""
    return " and ".join(
        f"`{parameter.name} = {value!r}`"
        for parameter in layer_facts.parameters(self._layers, name))


def loss(names: Names) -> str:
  return (
      "Lines are the loss in training, with the balancing losses of the "
      "mixtures in it; marks are evaluations, without. Good is a fast fall "
      "that becomes ever slower. If marks rise while the line falls, the model "
      "learns its text by heart: train for fewer `run.train_steps`, on more "
      f"text, or with {names.of('dropout_rate')}. If the line jumps or rises, "
      "lower `run.learning_rate_schedule`.")


def loads(names: Names, layers: Sequence[mixtures.Layer]) -> str:
  numbers = {len(layer.levels) for layer in layers} or {2}
  if 1 not in numbers:
    column = "A column is a group of experts of level one."
  elif len(numbers) == 1:
    column = "A column is an expert."
  else:
    column = ("With one level, a column is an expert; with more, it is a group "
              "of experts of level one.")
  return (
      "How many tokens wanted each expert, before any was dropped, relative to "
      "an even share: 1 is even, 2 is twice as many. Good is pale everywhere, "
      "with numbers near 1. Bad is a few brown experts among blue ones near 0, "
      f"which take memory and learn nothing: raise {names.of('loss_coef')}. "
      f"{column}")


def tokens(layers: Sequence[mixtures.Layer]) -> str:
  numbers = {len(layer.levels) for layer in layers} or {2}
  ways = {
      frozenset([1]): "Tokens choose experts.",
      frozenset([2]): "Tokens choose groups of experts at level one, and what "
                      "arrives there chooses experts at level two."}
  way = ways.get(frozenset(numbers), (
      "Tokens choose groups of experts at level one, what arrives there "
      "chooses at the next level, and experts are what is chosen at the last."))
  return (f"{way} What finds all slots taken is dropped: for that token, this "
          "expert adds nothing.")


def first_level(names: Names, choices: int, num_levels: int) -> str:
  """About the first level of a layer.

  Args:
    names: the `Names` of the run.
    choices: how many a token has, 0 where experts choose.
    num_levels: of the layer.
  """
  capacity = names.of("capacity_factor", 0)
  loss_coef = names.of("loss_coef")
  goal = "group" if num_levels > 1 else "expert"
  if not choices:
    return (
        f"Here {goal}s choose tokens; the whole is all tokens. Those in red "
        f"were chosen by none, and should be few. If they are not, raise "
        f"{capacity}.")
  if choices == 1:
    return (
        "Every token has one choice; the whole is all tokens. Dropped ones "
        f"(red) are tokens whose {goal} was full, and should be few. If they "
        f"are not, raise {capacity}, or {loss_coef} where loads are uneven.")
  number = {2: "two", 3: "three", 4: "four"}.get(choices, choices)
  later = "second" if choices == 2 else "later"
  refused = (
      f"left out by {names.of('second_policy_train', 0)}" if choices == 2 else
      f"left out by {names.of('second_policy_train', 0)}, or of no use, as an "
      "earlier one was kept (with the router ntlb)")
  return (
      f"Every token has {number} choices; the whole is all choices of all "
      f"tokens. Dropped first choices (red) are tokens whose favourite {goal} "
      f"was full, and should be few. If they are not, raise {capacity}, or "
      f"{loss_coef} where loads are uneven. Dropped {later} choices matter "
      f"less. Refused ones were weak, and {refused}.")


def level_below(names: Names, number: int, has_choices: bool) -> str:
  """About a level below the first.

  Args:
    names: the `Names` of the run.
    number: of the level, 1 for the second.
    has_choices: whether tokens choose.
  """
  above = tags.title_of(f"level_{number}")
  capacity = names.of("capacity_factor", number)
  whole = (f"The whole is what arrives: the choices that {above} kept, so that "
           "a token which reaches two groups counts twice. ")
  if not has_choices:
    return (f"{whole}The part in red was chosen by no expert; if it exceeds a "
            f"third, raise {capacity}.")
  return (
      f"{whole}The dropped part (red) was taken by no expert. Some is usual "
      "where slots are no more than arrivals; if it grows, or exceeds a third, "
      f"raise {capacity}, or {names.of('loss_coef')} where loads are uneven.")


def balance(
    names: Names, layers: Sequence[mixtures.Layer]) -> tuple[str, str]:
  """About the busiest expert, and about the unevenness of all."""
  deepest = max(len(layer.levels) for layer in layers)
  compared = {1: "", 2: " Level two compares the experts of all groups."}.get(
      deepest, " Levels below the first compare the experts of all groups.")
  loss_coef = names.of("loss_coef")
  return (
      "How often the busiest expert is wanted, relative to the average one. "
      "Near 1 is good. Above 2, many of its tokens find no slot while other "
      f"experts idle: raise {loss_coef}.",
      "The standard deviation of the loads over their mean: 0 is perfectly "
      "even. It should fall and stay low, below about 0.5; if it climbs, raise "
      f"{loss_coef}.{compared}")


def routers(names: Names) -> tuple[str, str]:
  """About their entropy, and about their confidence."""
  z_loss = names.set_to("z_loss", 0.001)
  return (
      "How undecided a router is about a token, on average. It starts near the "
      "grey line, where all experts are equal, and should fall slowly. If it "
      "stays there, the router cannot tell tokens apart: lower "
      f"{names.of('loss_coef')}. If it is near 0 early, choices no longer "
      f"change: set {z_loss}.",
      "The probability of the expert that a token likes best, on average: the "
      "other side of the entropy. It should rise slowly, and end between the "
      f"grey line and 1. Close to 1 early on, set {z_loss}.")
