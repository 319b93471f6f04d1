"""What the mode of a run needs, checked before anything is built."""

from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.decoding import sampling
from mtf_moe.decoding import scoring
from mtf_moe.run import gin_bindings
from mtf_moe.run import paths
from mtf_moe.train import checkpoints
from mtf_moe.train import evaluation
from mtf_moe.train import export

# Those of mesh_tensorflow.transformer.utils.run.
MODES = ("train", "perplexity_eval", "infer", "eval", "score_eval",
         "score_from_strings", "score_from_dataset", *export.MODES)
_NEWEST = -1


def get():
  """The value of run.mode."""
  return gin_bindings.bound("utils.run", "mode", "train")


def check(model_dir):
  """Checks the mode that gin has configured, and what it is to work with.

  Args:
    model_dir: a string, the directory of the run.

  Raises:
    ValueError: if there is no such mode, it needs a checkpoint and there is
      none, or an option of it is not allowed.
  """
  mode = get()
  if mode not in MODES:
    raise ValueError(
        f"run.mode = {mode!r} is not known. Choose one of: "
        f"{', '.join(map(repr, MODES))}.")
  if mode not in ("eval", "score_eval") and (
      gin_bindings.bound("utils.run", "sequence_length") is None):
    raise ValueError(
        f"run.sequence_length = None, and run.mode = {mode!r} needs one: set "
        "it to the tokens of a sequence, such as 128.")
  if mode == "train":
    _check_training_data()
  else:
    _check_has_checkpoint(model_dir, mode)
  if mode == "perplexity_eval":
    evaluation.check_options()
  if mode == "infer":
    sampling.check_prompts()
  if mode == "score_from_strings":
    scoring.check_strings()
  if mode in export.MODES:
    export.check_path()
  _check_suffix()


def _check_suffix():
  """Sees that evaluations are written to the model directory."""
  suffix = gin_bindings.bound("utils.run", "eval_dir_suffix")
  if suffix is not None and (
      not isinstance(suffix, str) or "/" in suffix or "\0" in suffix):
    raise ValueError(
        f"run.eval_dir_suffix = {suffix!r} is no end of a directory's name: "
        'set it to a string without /, such as "again", or leave it out.')


def _check_training_data():
  """Raises ValueError unless there is data to train on."""
  if gin_bindings.bound("utils.run", "train_dataset_fn") is None:
    raise ValueError(
        "run.train_dataset_fn is not set: add a file such as "
        "--gin_file=data/bytes.gin, or set it to a function that returns a "
        "tf.data.Dataset, such as @mtf_moe.text_dataset.")
  split = gin_bindings.bound("utils.run", "dataset_split", "train")
  if split != "train":
    raise ValueError(
        f"run.dataset_split = {split!r} is not for training: "
        'set it to "train", or run.mode to "perplexity_eval".')


def _check_has_checkpoint(model_dir, mode):
  """Raises unless a checkpoint is there.

  Without one, TensorFlow would evaluate newly initialized variables, or wait
  for ever.
  """
  elsewhere = gin_bindings.bound("infer_model", "checkpoint_paths")
  if mode == "infer" and elsewhere:
    for path in elsewhere:
      paths.usable(path, "infer_model.checkpoint_paths")
    return
  if not checkpoints.usable(model_dir):
    raise ValueError(
        f"--model_dir={model_dir} holds no checkpoint, and run.mode = {mode!r} "
        "needs one: give the directory of a model that was trained, or train "
        'one there with run.mode = "train".')


def checkpoints_read(model_dir):
  """The checkpoints that this run will read, as far as they are there.

  Args:
    model_dir: a string, the directory of the run.

  Returns:
    a list of their paths

  Raises:
    ValueError: if they are asked for in a way that is not known.
  """
  mode = get()
  if mode == "infer":
    given = gin_bindings.bound("infer_model", "checkpoint_paths")
    if given:
      return [given] if isinstance(given, str) else list(given)
  if mode == "train":
    newest = checkpoints.newest(model_dir)
    return [newest] if newest else []
  name = ("export_checkpoint_step" if mode in export.MODES
          else "eval_checkpoint_step")
  step = gin_bindings.bound("utils.run", name)
  if mode in export.MODES and type(step) is int and step == 0:
    raise ValueError(
        f"run.{name} = 0 exports the newest in mesh_tensorflow: set it to [0] "
        "for step 0, or to -1, the newest.")
  one_only = mode in scoring.MODES or mode in export.MODES
  several = isinstance(step, list | tuple) and len(step) != 1
  if one_only and (step == "all" or several):
    raise ValueError(
        f"run.{name} = {step!r}, and run.mode = {mode!r} reads one checkpoint: "
        "set it to its step, or to -1, the newest.")
  if mode in scoring.MODES and step is None:
    raise ValueError(
        f"run.{name} = None waits for new checkpoints without end in run.mode "
        f"= {mode!r}: set it to -1, the newest, or to a step.")
  if step in (None, _NEWEST) or (mode in export.MODES and not step):
    # Which leaves out damaged ones: see patches.usable_checkpoints.
    newest = tf.train.latest_checkpoint(model_dir)
    return [newest] if newest else []
  if step == "all":
    return list(utils.get_checkpoint_iterator(step, model_dir))
  steps = step if isinstance(step, list | tuple) else [step]
  if not steps or not all(type(one) is int for one in steps):
    raise ValueError(
        f"run.{name} = {step!r} is no step: set it to the number of one, to a "
        'list of them, to "all", or to -1, the newest.')
  _check_steps(name, step, steps, model_dir)
  return list(utils.get_checkpoint_iterator(step, model_dir))


def _check_steps(name, given, steps, model_dir):
  """Sees that these checkpoints are there, and not only others near them."""
  there = {utils.get_step_from_checkpoint_path(path): path
           for path in utils.get_checkpoint_iterator("all", model_dir)}
  missing = [step for step in steps if step not in there]
  if missing:
    raise ValueError(
        f"run.{name} = {given!r}: --model_dir={model_dir} holds no checkpoint "
        f"of step {', '.join(map(str, missing))} that can be used. It has "
        f"{', '.join(map(str, there))}: choose of these, or -1, the newest.")
