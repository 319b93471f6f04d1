"""Continues prompts with a trained model."""

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import paths


@gin.configurable(module="mtf_moe")
def continue_prompts(
    estimator, vocabulary, model_type, batch_size, sequence_length,
    checkpoint_path, prompts=gin.REQUIRED, output_filename=None):
  """Prints each prompt with what the model makes of it.

  For `infer_model.decode_fn`, in place of mesh_tensorflow's decode_from_file,
  which writes the text of a vocabulary that decodes in the graph as Python
  would show its bytes, and to a file only.

  Args:
    estimator: a TPUEstimator.
    vocabulary: a Vocabulary, or a pair of them.
    model_type: a string, as in `run`.
    batch_size: an integer, prompts at a time.
    sequence_length: a dict from feature to integer.
    checkpoint_path: a string.
    prompts: a list of strings, or the path of a text file with one a line.
    output_filename: an optional string: write the texts to this file as well,
      with the step of the checkpoint added to its name.

  Raises:
    ValueError: if there is no prompt, or one is longer than a sequence.
  """
  prompts = _checked_prompts(prompts, vocabulary, model_type, sequence_length)
  ids = utils.encode_inputs(
      prompts, vocabulary, model_type, batch_size, sequence_length["inputs"])

  def input_fn(params):
    del params
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": ids})
    return dataset.batch(batch_size, drop_remainder=True)

  decoded = utils.decode(
      estimator, input_fn, vocabulary, checkpoint_path=checkpoint_path)
  # The last batch is filled up with copies of the first prompt.
  texts = [prompt + _as_string(continuation)
           for prompt, continuation in zip(prompts, list(decoded))]
  for text in texts:
    print(f"\n{text}\n", flush=True)
  if output_filename is not None:
    step = utils.get_step_from_checkpoint_path(checkpoint_path)
    with tf.io.gfile.GFile(f"{output_filename}-{step}", "w") as f:
      f.write("\n\n".join(texts) + "\n")


def check_prompts():
  """Checks the prompts that gin has configured, before there is a model.

  Raises:
    ValueError: as `continue_prompts`.
  """
  decode_fn = gin.get_bindings("infer_model").get("decode_fn")
  if decode_fn is not continue_prompts:
    return
  filename = gin.get_bindings("mtf_moe.continue_prompts").get("output_filename")
  if filename is not None:
    paths.check_new_file(filename, "continue_prompts.output_filename")
  run = gin.get_bindings("utils.run")
  _checked_prompts(
      gin.get_bindings("mtf_moe.continue_prompts").get("prompts"),
      run.get("vocabulary"), run.get("model_type", "bitransformer"),
      run.get("sequence_length"))


def _checked_prompts(prompts, vocabulary, model_type, sequence_length):
  """A list of prompts, each of which fits into a sequence.

  mesh_tensorflow would cut a longer one, and continue what is left of it.
  """
  given = prompts
  if isinstance(prompts, str):
    if not tf.io.gfile.exists(prompts):
      raise ValueError(
          f"continue_prompts.prompts = {prompts!r} is no file: give the path "
          "of a text file with a prompt a line, or a list of strings.")
    try:
      prompts = utils.get_inputs_from_file(prompts)
    except (ValueError, tf.errors.OpError) as error:
      raise ValueError(
          f"continue_prompts.prompts = {prompts!r} is no text in UTF-8: give a "
          "text file with a prompt a line, or a list of strings.") from error
  elif prompts and not (isinstance(prompts, (list, tuple)) and all(
      isinstance(prompt, str) for prompt in prompts)):
    raise ValueError(
        f"continue_prompts.prompts = {prompts!r} must be a list of strings, or "
        "the path of a text file with a prompt a line.")
  if not prompts:
    raise ValueError(
        f"continue_prompts.prompts = {given!r} has no prompt: give a list of "
        "strings, or a text file with one a line.")
  length = (sequence_length["inputs"] if isinstance(sequence_length, dict)
            else sequence_length)
  end = 0 if model_type == "lm" else 1  # The end of document behind inputs.
  for number, prompt in enumerate(prompts, 1):
    size = len(utils.inputs_vocabulary(vocabulary).encode(prompt.strip())) + end
    if size > length:
      raise ValueError(
          f"continue_prompts.prompts: number {number}, {_start_of(prompt)!r}, "
          f"has {size} tokens, and run.sequence_length is {length}. Shorten "
          f"the prompt, or set sequence_length to {size} or more.")
  return prompts


def _start_of(text, length=30):
  return text if len(text) <= length else text[:length] + "..."


def _as_string(text):
  """What was decoded in the graph is bytes."""
  return text.decode("utf-8") if isinstance(text, bytes) else text
