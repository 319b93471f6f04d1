"""What functions, classes and objects gin may bind to parameters.

They are given as references, such as @mtf_moe.MoE2D, which gin calls where they
are written with parentheses.
"""

from collections.abc import Callable
import inspect
from typing import Any

from gin import config as gin_config

from mtf_moe.run import gin_bindings

_Reference = gin_config.ConfigurableReference

# For what is called later, so that a call in gin is one too early.
_FUNCTIONS = ("run.optimizer", "run.learning_rate_schedule",
              "run.train_dataset_fn", "run.eval_dataset_fn",
              "run.train_model_fn", "infer_model.decode_fn",
              "make_layer_stack.layers", "Unitransformer.loss_fn")
# For what is called by gin, or is nothing that works.
_OBJECTS = ("run.vocabulary", "run.predict_fn", "run.perplexity_eval_steps",
            "run.mesh_shape", "held_out_steps.vocabulary", "text_dataset.files",
            "held_out_steps.files")
# Of classes of the packages: what they must have for what they are given for.
_NEEDED = {"run.optimizer": "apply_grads", "run.vocabulary": "encode",
           "held_out_steps.vocabulary": "encode", "text_dataset.files": "read",
           "held_out_steps.files": "read"}
# What mesh_tensorflow calls a loss with.
_LOSS_ARGUMENTS = ("model", "context", "logits", "targets", "output_vocab_dim")
_EXAMPLES = {"apply_grads": "@optimize.AdafactorOptimizer",
             "encode": "@mtf_moe.ByteVocabulary()",
             "read": "@mtf_moe.TextFiles()"}


def check(key: str, name: str, value: Any):
  """Checks that references are of the kind that the parameter is for.

  And that functions are called by whom they are to be called.

  Args:
    key: the name of a parameter, without scopes and modules.
    name: the name that the user knows.
    value: what gin binds to it, with macros resolved.

  Raises:
    ValueError: if not, with the remedy.
  """
  for one in value if isinstance(value, (list, tuple)) else [value]:
    if not (isinstance(one, _Reference)
            and gin_bindings.is_of_packages(one.configurable)):
      continue
    made_by = one.configurable.wrapped
    needed = _NEEDED.get(key)
    if needed and inspect.isclass(made_by) and not hasattr(made_by, needed):
      raise ValueError(
          f"{name} = {one} is of another kind: give a class with a method "
          f"{needed!r}, as {_EXAMPLES[needed]} has.")
    if key in _FUNCTIONS and one.evaluate:
      raise ValueError(
          f"{name} = {one} calls what the run itself is to call: write it "
          f"without parentheses, {str(one).removesuffix('()')}.")
    if key in _OBJECTS and not one.evaluate and (
        key != "run.predict_fn" or inspect.isclass(one.configurable.wrapped)):
      raise ValueError(
          f"{name} = {one} is not called: write it with parentheses, {one}().")


def function(example: str, none=False, classes=True) -> Callable[[Any], Any]:
  """A check for references, and for None where it means none.

  Args:
    example: of what is allowed.
    none: a boolean.
    classes: a boolean, whether a class may be called in place of a function:
      what that returns is an object of the class.
  """
  allowed = example + (", or None" if none else "")

  def check_function(value):
    if not (callable(value) or isinstance(value, _Reference)
            or (none and value is None)):
      raise ValueError(f"must be a reference, such as {allowed}")
    if not classes and isinstance(value, _Reference) and (
        inspect.isclass(value.configurable.wrapped)):
      raise ValueError(f"is a class: give a function, such as {allowed}")
    return value

  return check_function


def dataset_function(value):
  """A check for what makes the data of a run."""
  example = "@mtf_moe.text_dataset"
  function(example, none=True)(value)
  error = _why_not_called(
      value, sequence_length=None, vocabulary=None, dataset_split=None)
  if error:
    raise ValueError(
        f"makes no data set ({error}): give a function of sequence_length, "
        f"vocabulary and dataset_split, such as {example}")
  return value


def loss_function(value):
  """A check for what computes the loss of a model."""
  example = "@adaptive_softmax.adaptive_softmax_loss_fn"
  function(example, none=True, classes=False)(value)
  error = _why_not_called(value, *_LOSS_ARGUMENTS)
  if error:
    raise ValueError(
        f"computes no loss ({error}): give a function of "
        f"{', '.join(_LOSS_ARGUMENTS)}, such as {example}, or None")
  return value


def _why_not_called(value, *args, **kwargs):
  """Why a reference cannot be called with arguments, or None."""
  if isinstance(value, _Reference):
    try:
      # Of the others, gin may have values.
      inspect.signature(value.configurable.wrapped).bind_partial(
          *args, **kwargs)
    except TypeError as error:
      return error
  return None


def vocabulary(value):
  """A check for one vocabulary, or a pair of them."""
  for one in value if isinstance(value, tuple) else [value]:
    if not (one is None or isinstance(one, _Reference)):
      raise ValueError(
          "must be a reference, such as @mtf_moe.ByteVocabulary(), or a pair "
          "of them")
  return value


def layers(value):
  """A check for the layers of a block."""
  if not isinstance(value, (list, tuple)) or not value or not all(
      map(_is_layer, value)):
    raise ValueError(
        "must be a list of references to layers, such as [@transformer_layers."
        "SelfAttention, @mtf_moe.MoE2D]")
  return value


def _is_layer(item):
  """Whether it makes a layer, also with a name and arguments."""
  if isinstance(item, (list, tuple)):
    rest = [one for one in item if not isinstance(one, (str, dict))]
    return len(rest) == 1 and _is_layer(rest[0])
  if not isinstance(item, _Reference):
    return False
  made_by = item.configurable.wrapped
  if inspect.isclass(made_by):
    return hasattr(made_by, "set_name")  # Which mesh_tensorflow calls.
  return not gin_bindings.is_of_packages(item.configurable)
