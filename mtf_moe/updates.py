"""Variables of routers that a rule moves in every step, and no optimizer.

Such as a bias that keeps experts equally busy: it follows how busy they were,
which has no gradient (Wang et al. 2024, https://arxiv.org/abs/2408.15664).

What moves a variable travels in place of its gradient. So it is summed over
the microbatches of a step, leaves functions that are computed again on the
backward pass, and is there exactly where a step trains. The optimizer is not
asked: `mtf.optimize.Optimizer.apply_grads` follows the rule instead, from the
first such variable on and for good, as whoever builds a step (mesh_tensorflow,
T5, a program) knows nothing of routers. All others are the optimizer's. A
program that scales gradients before that, to clip them, scales what moves the
variable, which a rule that looks at signs does not notice.
"""

from collections.abc import Callable
import functools
import weakref

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations

# From a variable and what moves it, both float32 of its shape, to its next
# value.
Rule = Callable[[mtf.Tensor, mtf.Tensor], mtf.Tensor]

# Of what travels in place of a gradient, so that a program that looks at the
# size of all gradients, to clip them, sees nothing of it. A power of 2: exact.
_SCALE = 2.0 ** -60

_rules: "weakref.WeakKeyDictionary[mtf.Graph, dict[str, Rule]]" = (
    weakref.WeakKeyDictionary())


def variable(mesh: mtf.Mesh, name: str, shape, rule: Rule) -> mtf.Tensor:
  """Makes a variable that a rule moves, zeros at the beginning.

  It is in checkpoints, and trainable in the eyes of mesh_tensorflow: the
  parameters of a run that select variables select it, too.

  Args:
    mesh: a mtf.Mesh.
    name: a string, in the current variable scope.
    shape: a Shape.
    rule: how it moves.

  Returns:
    a float32 Tensor of this shape
  """
  _install()
  tensor = mtf.get_variable(
      mesh, name, shape, initializer=tf.zeros_initializer(),
      dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32))
  _rules.setdefault(mesh.graph, {})[tensor.operation.name] = rule
  return tensor


def carried(x: mtf.Tensor, moved: mtf.Tensor, moved_by: mtf.Tensor
            ) -> mtf.Tensor:
  """A tensor as it is, with which goes what moves a variable.

  Args:
    x: a Tensor that has a gradient wherever the step trains the layer.
    moved: the variable, as `variable` returned it.
    moved_by: a Tensor of its shape.

  Returns:
    the Tensor `x`
  """
  return operations.tied(x, [moved, moved_by], lambda op, grad: [
      grad, op.inputs[2] * _SCALE, mtf.zeros_like(op.inputs[2])])


def _install():
  """Makes optimizers of mesh_tensorflow leave such variables to their rules."""
  original = mtf.optimize.Optimizer.apply_grads
  if not hasattr(original, "follows_rules"):
    wrapped = _following_rules(original)
    wrapped.follows_rules = True
    mtf.optimize.Optimizer.apply_grads = wrapped


def _following_rules(apply_grads):
  """Wraps `mtf.optimize.Optimizer.apply_grads`."""

  @functools.wraps(apply_grads)
  def wrapped(self, grads, variables):
    learned, moved = [], []
    for grad, one in zip(grads, variables):
      rule = _rules.get(one.graph, {}).get(one.name)
      if rule is None:
        learned.append((grad, one))
      elif grad is not None:  # Else the step does not train the layer.
        moved.append(mtf.assign(one, rule(one.value, grad * (1.0 / _SCALE))))
    assignments = apply_grads(
        self, [grad for grad, _ in learned], [one for _, one in learned])
    if moved:
      assignments += one.graph.combine_assignments(moved)
    return assignments

  return wrapped
