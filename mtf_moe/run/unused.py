"""Finds what a user has set in gin to no effect.

Gin takes `train_steps = 3` for a macro, which nothing need refer to, and a
binding of what never runs. A macro without use that --gin_param sets is an
error: it was written for this very run, which may last days. In a file, and
for bindings, it is a warning, as files serve several runs and modes; so it is
where a macro of the package is set, and what it is for as well. What the
package and mesh_tensorflow set themselves is no one's mistake.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import inspect
import logging

from gin import config as gin_config
from gin import config_parser
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer

from mtf_moe.run import gin_bindings

_LOST = ("has no effect: what takes this macro from the package's files is set "
         "otherwise.")

_logger = logging.getLogger(__name__)

_MACRO = "gin.macro"
# Those that mesh_tensorflow enters by itself, for stacks and for models.
_STACKS = {"encoder", "decoder"}
_SCOPES = {"bitransformer": _STACKS,
           "bi_student_teacher": {*_STACKS, "student", "teacher"}}
# Of this package, what runs only where something refers to it.
_BY_REFERENCE = (
    "BeamSearch", "ByteVocabulary", "SentencePieceVocabulary",
    "continue_prompts", "held_out_steps", "text_dataset")

# What mesh_tensorflow makes by itself in others, and what each is made in.
_MADE_IN = {
    "DenseReluDense": ("BranchedSelfAttention",),
    "SelfAttention": ("DecoderAttentionLayer",),
    "EncDecAttention": ("DecoderAttentionLayer",),
    "Conv1DLayer": ("EncoderConvolutionalLayer",),
    "SeparableConv1DLayer": (
        "EncoderConvolutionalLayer", "DecoderConvolutionalLayer"),
    "LightweightConv1DLocalAttn": ("LocalConvAttnBlock",),
    "DynamicConv1DLocalAttn": ("LocalConvAttnBlock",),
}


class _Names(config_parser.ParserDelegate):
  """Reads references as nothing, to see only what is bound."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return None

  def macro(self, scoped_name):
    return None


@dataclasses.dataclass(frozen=True)
class Source:
  """A piece of gin that has been read.

  Attributes:
    name: of the file, or the flag.
    text: what it says.
    is_file: whether it is a file.
    is_of_user: or of a package that is installed, this one among them.
  """

  name: str
  text: str
  is_file: bool
  is_of_user: bool = True

  def bindings(self):
    """The statements that bind something."""
    return [statement for statement in config_parser.ConfigParser(
        self.text, _Names())
            if isinstance(statement, config_parser.BindingStatement)]


def check(sources: Sequence[Source]):
  """Tells what has no effect.

  Args:
    sources: all gin files and flags that have been read.

  Raises:
    ValueError: if --gin_param sets a macro that nothing refers to, and that no
      file of the package knows.
  """
  references = [
      reference for reference in gin_config.iterate_references(
          gin_config._CONFIG)]
  macros = {reference.config_key[0] for reference in references
            if reference.configurable.wrapped is gin_config.macro}
  # Those that have lost their use, to a parameter that is set directly.
  known = {statement.selector for source in sources if not source.is_of_user
           for statement in source.bindings() if not statement.arg_name}
  told = set()
  for source in sources:
    for statement in source.bindings() if source.is_of_user else ():
      line = statement.location.line_content.strip()
      where = f"{source.name}, line {statement.location.line_num}: {line!r}"
      if not statement.arg_name:
        name = "/".join(filter(None, [statement.scope, statement.selector]))
        why = (None if name in macros else _LOST if name in known
               else _of_macro(name, line, macros))
      else:
        why = _of_binding(statement, references)
      if why is None or why in told:
        continue
      told.add(why)
      if not statement.arg_name and not source.is_file and why != _LOST:
        raise ValueError(f"{where} {why}")
      _logger.warning("%s %s", where, why)


def _of_macro(name, line, macros):
  """Why a macro has no effect, and what may be meant."""
  value = line.partition("=")[2].strip()
  why = "sets a macro that nothing refers to, so it has no effect"
  for meant in ("run", "MoE2D", "train_model", "Unitransformer"):
    configurable = gin_config._REGISTRY.get_match(meant)
    if configurable and name in inspect.signature(
        configurable.wrapped).parameters:
      return f"{why}: write {meant}.{name} = {value}."
  if name in ("sequences_per_batch", "tokens_per_batch",
              "sequences_per_replica", "tokens_per_replica"):
    return f'{why}: write run.batch_size = ("{name}", {value}).'
  close = difflib.get_close_matches(name, sorted(macros), n=1)
  return (f"{why}: did you mean {close[0]} = {value}?" if close else
          f"{why}: remove it, or write the parameter that it is for, such as "
          f"run.{name}.")


def _of_binding(statement, references):
  """Why a binding has no effect, or None."""
  model_type = gin_bindings.bound("utils.run", "model_type", "bitransformer")
  scopes = {scope for reference in references for scope in reference.scopes}
  scopes |= _SCOPES.get(model_type, set())
  for scope in filter(None, statement.scope.split("/")):
    if scope in scopes:
      continue
    if any(scope in of_others for of_others in _SCOPES.values()):
      return (f"has no effect: a model with run.model_type = {model_type!r} "
              f"has no {scope}. Leave {scope}/ out, or choose another type of "
              "model.")
    return (f"has no effect: nothing runs in the scope {scope!r}. Refer to "
            f"@{statement.scope}/{statement.selector} somewhere, or leave the "
            "scope out.")
  configurable = gin_config._REGISTRY.get_match(statement.selector)
  if configurable is None:
    return None
  if model_type == "bitransformer" and not statement.scope and (
      _is_set_in_each_stack(statement, configurable, references)):
    name = f"{statement.selector}.{statement.arg_name}"
    return (f"has no effect: encoder/{name} and decoder/{name} are set, and go "
            "before it. Set these.")
  if not _runs_by_reference(configurable):
    return None
  for reference in references:
    used = reference.configurable
    is_of_gin = used.wrapped.__module__.startswith("gin.")
    if not (is_of_gin or gin_bindings.is_of_packages(used)):
      return None  # What a user's own code runs, gin does not know.
    if _makes(used.wrapped, configurable):
      return None
  return (f"has no effect: nothing in this configuration refers to "
          f"@{statement.selector}.")


def _is_set_in_each_stack(statement, configurable, references):
  """Whether each stack has its own value, as in mesh_tensorflow's defaults.

  What a reference runs in another scope is out of those of the stacks.
  """
  return all(
      statement.arg_name in gin_config._CONFIG.get(
          (stack, configurable.selector), ()) for stack in _STACKS) and not any(
              reference.scopes for reference in references
              if not reference.configurable.wrapped.__module__.startswith(
                  "gin."))


def _makes(used, configurable):
  """Whether something that is used is, extends, or makes a configurable."""
  if used is configurable.wrapped:
    return True
  names = {configurable.name, *_MADE_IN.get(configurable.name, ())}
  if inspect.isclass(used):
    return any(extended.__name__ in names for extended in used.__mro__)
  return used.__name__ in names


def _runs_by_reference(configurable):
  """Whether mesh_tensorflow runs it only where gin refers to it."""
  wrapped = configurable.wrapped
  if inspect.isclass(wrapped) and issubclass(
      wrapped, (transformer.TransformerLayer, mtf.optimize.Optimizer)):
    return wrapped.__name__ != "LayerStack"  # Which is the default of a stack.
  return (configurable.selector.startswith("mtf_moe.")
          and configurable.name in _BY_REFERENCE)
