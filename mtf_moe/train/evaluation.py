"""Evaluations that are measurements: what was found, on how many tokens.

mesh_tensorflow's `run` writes what it finds in mode "perplexity_eval" to an
event file and says nothing. Of its metrics, "neg_log_perplexity" is a mean over
tokens. Its "loss" is not: empty examples, which fill up the last batch, and
padding count as tokens that cost nothing, and the balancing losses are in it.
"""

import dataclasses
import functools
import inspect
import lzma
import math
import zlib

import gin
import tensorflow.compat.v1 as tf

from mtf_moe import transformer_layers
from mtf_moe.run import configured_model
from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.run import patches
from mtf_moe.text import text_data
from mtf_moe.text import text_files
from mtf_moe.train import progress

_STEPS = "evaluated {n_fmt} of {total_fmt} steps"
_DROPLESS = "dropless"


@gin.configurable(module="mtf_moe")
def evaluate(run, keep=None, with_dropless=False):
  """Runs the perplexity evaluation that gin has configured, and reports it.

  Nats per token and perplexity are printed for any data, bits per byte for the
  held-out part of local text, beside what compression programs need for it.

  Args:
    run: mesh_tensorflow's `run`, with its arguments but for those of gin.
    keep: a function of a dict, what an evaluation found, by name; called for
      each. None keeps nothing.
    with_dropless: a boolean: evaluate once more with dropless_eval = True in
      all mixtures, into a directory whose name ends in "dropless", and report
      the difference, which is what the model loses by its capacities.
  """
  report = _Report(gin.get_bindings("utils.run"), keep)
  with patches.changed_estimators(functools.partial(_Watched, report=report)):
    run()
    if with_dropless:
      report.begin_dropless()
      run()
      report.print_gaps()


def at_end() -> bool:
  """The value of train_model.evaluate_at_end.

  Raises:
    ValueError: if it is neither True nor False.
  """
  try:
    value = gin_bindings.bound("mtf_moe.train_model", "evaluate_at_end", False)
  except ValueError:  # Another function trains.
    return False
  if not isinstance(value, bool):
    raise ValueError(
        f"train_model.evaluate_at_end = {value!r} is neither on nor off: set "
        "it to True or False.")
  return value


def check_at_end(run):
  """Sees before training that what comes at its end will not fail.

  Args:
    run: a dict, the gin bindings of `run`.

  Raises:
    ValueError: as `check_options`; or if the held-out data cannot be read, or
      has no honest bits per byte.
  """
  check_options(step=-1)
  run = {**run, "dataset_split": text_data.HELD_OUT}
  _HeldOutText.of(run)
  if run.get("eval_dataset_fn") is None:
    with tf.Graph().as_default():
      run["train_dataset_fn"](
          sequence_length=run["sequence_length"],
          vocabulary=run.get("vocabulary"), dataset_split=text_data.HELD_OUT)


def evaluate_at_end(run, keep=None):
  """Evaluates the newest checkpoint in the process that has trained it.

  That is as if the program were started once more with runs/perplexity.gin. It
  is TensorFlow that evaluates, whatever has trained.

  Args:
    run, keep: as of `evaluate`.
  """
  with gin.unlock_config():
    gin.parse_config_file("runs/perplexity.gin")
  evaluate(run, keep)


def check_options(step: int | None = None):
  """Checks what gin has configured for `evaluate`.

  Args:
    step: in place of run.eval_checkpoint_step, if not None.

  Raises:
    ValueError: if evaluate.with_dropless is no boolean, the evaluation that
      is to be done twice never ends, or steps are counted for other batches
      than there are.
  """
  _check_held_out_steps()
  with_dropless = gin.get_bindings("mtf_moe.evaluate").get(
      "with_dropless", False)
  if step is None:
    step = gin_bindings.bound("utils.run", "eval_checkpoint_step")
  if not isinstance(with_dropless, bool):
    raise ValueError(
        f"evaluate.with_dropless = {with_dropless!r} is neither on nor off: "
        "set it to True or False.")
  if with_dropless and step is None:
    raise ValueError(
        "evaluate.with_dropless = True evaluates twice, and "
        "run.eval_checkpoint_step = None waits for new checkpoints without "
        "end: set run.eval_checkpoint_step to -1, the newest, or to a step.")


def _check_held_out_steps():
  """Raises ValueError if held_out_steps is told of other batches."""
  run = gin.get_bindings("utils.run", resolve_references=False)
  steps, _ = gin_bindings.resolved(run.get("perplexity_eval_steps"))
  if not (isinstance(steps, gin.config.ConfigurableReference)
          and steps.configurable.wrapped is inspect.unwrap(
              text_data.held_out_steps)):
    return
  counted = gin.get_bindings("mtf_moe.held_out_steps").get("batch_size")
  batch_size = configured_model.batch_size()
  if counted is not None and counted != batch_size:
    raise ValueError(
        f"held_out_steps.batch_size = {counted}, and run.batch_size makes "
        f"batches of {batch_size} sequences: leave the former out, and it "
        "follows.")


@dataclasses.dataclass(frozen=True)
class Result:
  """What one evaluation found.

  Attributes:
    step: of the checkpoint.
    num_tokens: the predicted tokens, of which the following are means.
    log_likelihood: in nats, not positive.
    accuracy: the share of tokens that were the likeliest.
  """

  step: int
  num_tokens: int
  log_likelihood: float
  accuracy: float

  @classmethod
  def of(cls, metrics):
    """Reads the metrics of mesh_tensorflow's evaluation."""
    return cls(
        int(metrics["global_step"]), round(float(metrics["num_eval_tokens"])),
        float(metrics["neg_log_perplexity"]), float(metrics["token_accuracy"]))

  @property
  def nats_per_token(self):
    return -self.log_likelihood

  @property
  def perplexity(self):
    try:
      return math.exp(self.nats_per_token)
    except OverflowError:
      return math.inf


class _Report:
  """Prints results as they come, and keeps them for comparison."""

  def __init__(self, run, keep=None):
    """Makes the report.

    Args:
      run: a dict, the gin bindings of `run`.
      keep: as of `evaluate`.
    """
    self._keep = keep or (lambda found: None)
    self._suffix = run.get("eval_dir_suffix")
    self._names_data = run.get("eval_dataset_fn") is not None
    self._text = _HeldOutText.of(run)
    self._results = {}  # By the name of the evaluation and the step.
    self._dropless = None  # The same of dropless evaluation, while it goes on.

  def add(self, name, metrics):
    """Prints a result.

    Args:
      name: a string, what `run` calls the evaluation.
      metrics: a dict, as an Estimator returns it.
    """
    result = Result.of(metrics)
    first = self._dropless is None
    how = "" if first else f", {_DROPLESS}"
    if self._names_data:
      how = f" of {name}"
    console.say(
        f"evaluated step {result.step:,} on {result.num_tokens:,} tokens"
        f"{how}: {result.nats_per_token:.4f} nats per token, perplexity "
        f"{result.perplexity:.2f}, {result.accuracy:.1%} predicted right")
    if self._text:
      self._text.print_bits_per_byte(result, "" if first else f", {_DROPLESS}")
    self._keep({
        "step": result.step, "evaluation": name, "dropless": not first,
        "nats_per_token": result.nats_per_token,
        "bits_per_byte": self._bits_per_byte(result),
        "accuracy": result.accuracy, "num_tokens": result.num_tokens})
    if first:
      self._results[name, result.step] = result
    else:
      self._dropless[name.removesuffix("_" + _DROPLESS), result.step] = result

  def _bits_per_byte(self, result):
    if self._text is None or not self._text.is_all_of(result):
      return None
    return self._text.size.bits_per_byte(result.log_likelihood)

  def begin_dropless(self):
    """Configures a dropless evaluation of the same checkpoints."""
    self._dropless = {}
    suffix = _DROPLESS if self._suffix is None else (
        f"{self._suffix}_{_DROPLESS}")
    with gin.unlock_config():
      for layer in gin_bindings.in_scopes(
          "dropless_eval", *transformer_layers.LAYERS):
        gin.bind_parameter(f"{layer}.dropless_eval", True)
      gin.bind_parameter("utils.run.eval_dir_suffix", suffix)
      # A newer one may have been written in the meantime.
      gin.bind_parameter("utils.run.eval_checkpoint_step", sorted(
          {step for _, step in self._results}))

  def print_gaps(self):
    """Prints how much worse each result is than the dropless one."""
    for key, result in self._results.items():
      if key not in self._dropless:
        console.say(
            f"the checkpoint of step {result.step:,} is gone: nothing to "
            "compare with")
        continue
      gap = result.nats_per_token - self._dropless[key].nats_per_token
      in_bits = ""
      if self._text and self._text.is_all_of(result):
        in_bits = f", {self._text.size.bits_per_byte(-gap):+.4f} bits per byte"
      console.say(
          f"dropping tokens costs {gap:+.4f} nats per token{in_bits}, over "
          f"{result.num_tokens:,} tokens of step {result.step:,}")


class _HeldOutText:
  """The text that is evaluated, for bits per byte."""

  def __init__(self, size):
    self.size = size
    self._introduced = False

  @classmethod
  def of(cls, run):
    """None where the data is no held-out text of ours."""
    if (run.get("eval_dataset_fn") is None
        and run.get("train_dataset_fn") is text_data.text_dataset
        and run.get("dataset_split") == text_data.HELD_OUT):
      return cls(text_data.held_out_size(
          run["vocabulary"], run["sequence_length"]))
    return None

  def is_all_of(self, result):
    return result.num_tokens == self.size.num_tokens

  def print_bits_per_byte(self, result, how):
    """Prints bits per byte, the first time with what they are compared to."""
    if not self.is_all_of(result):
      console.say(
          f"this is not the whole held-out part of {self.size.num_tokens:,} "
          "tokens: set run.perplexity_eval_steps = @mtf_moe.held_out_steps()")
      return
    if not self._introduced:
      self._introduced = True
      _, held_out = text_files.TextFiles().read()
      text = "".join(document.text for document in held_out).encode()
      console.say(
          f"held-out text: {self.size.num_documents} documents, "
          f"{self.size.num_bytes:,} bytes, {self.size.num_tokens:,} tokens; "
          f"gzip -9 needs {_bits_per_byte(_gzip(text), text):.3f} bits per "
          f"byte, xz -9e {_bits_per_byte(_xz(text), text):.3f}")
    bits = self.size.bits_per_byte(result.log_likelihood)
    console.say(f"held-out bits per byte{how}: {bits:.3f}")


class _Watched:
  """An estimator that says how far an evaluation is, and reports its result."""

  def __init__(self, estimator, report):
    self._estimator = estimator
    self._report = report

  def __getattr__(self, name):
    return getattr(self._estimator, name)

  def evaluate(self, steps, name, **kwargs):
    console.say("building the graph")
    metrics = self._estimator.evaluate(
        steps=steps, name=name, hooks=[_ProgressHook(steps)], **kwargs)
    self._report.add(name, metrics)
    return metrics


class _ProgressHook(tf.train.SessionRunHook):
  """Shows the steps that are done, and the time left."""

  def __init__(self, total_steps):
    self._total_steps = total_steps

  def begin(self):
    self._steps_done, = tf.get_collection(tf.GraphKeys.EVAL_STEP)

  def after_create_session(self, session, coord):
    self._progress = progress.Progress(self._total_steps, steps=_STEPS)

  def after_run(self, run_context, run_values):
    # On a TPU, one call makes many steps.
    self._progress.show(int(run_context.session.run(self._steps_done)))

  def end(self, session):
    self._progress.close()


def _gzip(data):
  return zlib.compress(data, 9)


def _xz(data):
  return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _bits_per_byte(compressed, data):
  return 8 * len(compressed) / len(data)
