"""Batches of the configured data as arrays, for where no TensorFlow is."""

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import simd
from mtf_moe.run import sessions
from mtf_moe.run.configured_model import ConfiguredModel

_SPLITS = {"train": "train", "eval": "validation"}


def collect(configured: ConfiguredModel, built: simd.Program, number: int,
            mode: str) -> dict[str, np.ndarray]:
  """Reads batches, in the order in which training, or an evaluation, does.

  Args:
    configured: the `ConfiguredModel`; run.train_dataset_fn is needed.
    built: the program that they are for.
    number: how many at most. A training part begins anew when it ends; of
      others, what fills no batch is left out.
    mode: "train", or "eval" for the part that is held out.

  Returns:
    for each input of the program an array [number, <shape of the input>], of
    the narrowest type of integers

  Raises:
    ValueError: if the data has no such feature, or not one batch.
  """
  with tf.Graph().as_default(), tf.device("/cpu:0"):
    dataset = configured.run["train_dataset_fn"](
        sequence_length=configured.lengths,
        vocabulary=configured.run.get("vocabulary"),
        dataset_split=_SPLITS[mode])
    if mode == "train":
      dataset = dataset.repeat()
    following = tf.data.make_one_shot_iterator(
        dataset.batch(configured.num_sequences, drop_remainder=True).take(
            number)).get_next()
    missing = sorted(built.inputs.keys() - following.keys())
    if missing:
      raise ValueError(
          f"run.train_dataset_fn has {sorted(following)}, and the model takes "
          f"{missing} as well: use data that have them.")
    batches: list[dict[str, np.ndarray]] = []
    with sessions.on_cpu() as session:
      while len(batches) < number:
        try:
          batches.append(session.run(
              {name: following[name] for name in built.inputs}))
        except tf.errors.OutOfRangeError:
          break
  if not batches:
    raise ValueError(
        f"The {_SPLITS[mode]} part of the data has fewer sequences than the "
        f"{configured.num_sequences} of a batch: lower run.batch_size.")
  return {name: _narrow(np.stack([batch[name] for batch in batches])).reshape(
      len(batches), *given.shape.to_integer_list)
          for name, given in built.inputs.items()}


def _narrow(ids):
  """The same numbers, in the smallest type that has them."""
  if not np.issubdtype(ids.dtype, np.integer):
    return ids
  return ids.astype(np.promote_types(
      np.min_scalar_type(ids.min()), np.min_scalar_type(ids.max())))
