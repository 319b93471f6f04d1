"""What an evaluation found, in words."""

import glob
import lzma
import math
import os
import zlib

import gin
import tensorflow.compat.v1 as tf

from mtf_moe.train import text_data
from mtf_moe.train import text_files


def report(model_dir):
  """Prints the result of the perplexity evaluation that gin has configured.

  mesh_tensorflow's `run` writes it to an event file and says nothing. For the
  held-out part of local text, the result is put in bits per byte, beside what
  compression programs need for the same text.

  Args:
    model_dir: a string, the directory of the run.
  """
  run = gin.get_bindings("utils.run")
  if run.get("mode") != "perplexity_eval":
    return
  step, metrics = _newest_metrics(model_dir)
  log_likelihood = metrics["neg_log_perplexity"]  # nats per token, negative
  print(f"evaluated step {step:,} on {metrics['num_eval_tokens']:,.0f} tokens: "
        f"perplexity {math.exp(-log_likelihood):.2f} a token, "
        f"{metrics['token_accuracy']:.1%} predicted right")
  of_text = run.get("train_dataset_fn") is text_data.text_dataset
  if of_text and run.get("dataset_split") == text_data.HELD_OUT:
    _report_bits_per_byte(run, log_likelihood, metrics["num_eval_tokens"])


def _report_bits_per_byte(run, log_likelihood, num_tokens):
  size = text_data.held_out_size(run["vocabulary"], run["sequence_length"])
  if num_tokens != size.num_tokens:
    print(f"this is not the whole held-out part of {size.num_tokens:,} tokens: "
          "set run.perplexity_eval_steps = @mtf_moe.held_out_steps()")
    return
  _, held_out = text_files.TextFiles().read()
  text = "".join(document.text for document in held_out).encode()
  print(f"held-out text: {size.num_documents} documents, "
        f"{size.num_bytes:,} bytes; gzip -9 needs "
        f"{_bits_per_byte(_gzip(text), text):.3f} bits per byte, xz -9e "
        f"{_bits_per_byte(_xz(text), text):.3f}")
  print(f"held-out bits per byte: {size.bits_per_byte(log_likelihood):.3f}")


def _newest_metrics(model_dir):
  """(step, {metric: value}) of the evaluation that was written last."""
  files = glob.glob(os.path.join(model_dir, "eval_*", "events.out.tfevents.*"))
  newest = max(files, key=os.path.getmtime)
  results = {}
  for event in tf.train.summary_iterator(newest):
    metrics = {v.tag: v.simple_value for v in event.summary.value}
    if "neg_log_perplexity" in metrics:
      results[event.step] = metrics
  return max(results.items())


def _gzip(data):
  return zlib.compress(data, 9)


def _xz(data):
  return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _bits_per_byte(compressed, data):
  return 8 * len(compressed) / len(data)
