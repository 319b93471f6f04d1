"""That bfloat16 is multiplied right here, and that it is told where not."""

import os
import pathlib
import subprocess
import sys
import textwrap

import tensorflow.compat.v1 as tf

from mtf_moe.run import arithmetic
from tests.train import program


def test_products_are_right():
  """On a processor with AMX, because compat has TensorFlow do without."""
  assert not arithmetic.is_wrong()


def test_graphs_that_multiply_bfloat16_are_recognized():
  def graph(dtype, attributes=None):
    made = tf.Graph()
    with made.as_default(), made._attr_scope(attributes or {}):
      x = tf.ones([2, 2], dtype)
      tf.einsum("ab,bc->ac", x, x)
    return made

  on_tpu = {"_tpu_replicate": tf.AttrValue(s=b"cluster")}
  assert arithmetic.multiplies_bfloat16(graph(tf.bfloat16))
  assert not arithmetic.multiplies_bfloat16(graph(tf.float32))
  assert not arithmetic.multiplies_bfloat16(graph(tf.bfloat16, on_tpu))


_TRAIN = """
    import sys
    import tensorflow.compat.v1 as tf
    from tensorflow_estimator import estimator as tf_estimator
    from mtf_moe.run import arithmetic

    def model_fn(features, labels, mode):
      x = tf.ones([2, 2], sys.argv[1])
      loss = tf.cast(tf.reduce_sum(tf.matmul(x, x)), tf.float32)
      return tf_estimator.EstimatorSpec(
          mode, loss=loss,
          train_op=tf.assign_add(tf.train.get_global_step(), 1).op)

    if __name__ == "__main__":
      tf_estimator.Estimator(model_fn, sys.argv[2]).train(
          lambda: tf.data.Dataset.from_tensors(1.0), steps=1)
      print("wrong" if arithmetic.is_wrong() else "right")
    """


def _train(directory, dtype):
  """Trains where oneDNN may use all instructions; what it printed and said."""
  (directory / "training.py").write_text(textwrap.dedent(_TRAIN))
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.run", "training.py", dtype, dtype],
      cwd=directory, capture_output=True, text=True, check=True,
      env={**os.environ, "PYTHONPATH": program.ROOT,
           "ONEDNN_MAX_CPU_ISA": "ALL"})
  return result.stdout.strip(), arithmetic.ADVICE in result.stderr


def _has_amx():
  cpu = pathlib.Path("/proc/cpuinfo")
  return cpu.exists() and "amx_bf16" in cpu.read_text()


def test_a_run_is_warned_just_where_products_are_wrong(tmp_path):
  """That is, on a processor with AMX, with some releases of TensorFlow."""
  printed, is_warned = _train(tmp_path, "bfloat16")
  assert is_warned == (printed == "wrong")
  if _has_amx() and tf.__version__ in ("2.12.1", "2.21.0"):
    assert is_warned  # That is what these are known for.
  _, is_warned = _train(tmp_path, "float32")
  assert not is_warned
