"""What layers are told of tokens: ids, and what is padding."""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import contexts
from tests import gin_config
from tests import harness
from tests import transformer_layers_test


@pytest.mark.parametrize("mode, autoregressive, ids, expected", [
    # What is fed is one token behind what is predicted: 5 and 6 are.
    ("score", True, [0, 5, 6, 0, 0], [1, 1, 0, 0, 0]),
    ("score", True, [0, 5, 6, 7, 8], [1, 1, 1, 1, 1]),
    ("score", True, [0, 5, 0, 7, 0], [1, 1, 1, 0, 0]),
    ("score", True, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ("score", True, [0], [1]),
    # An encoder, or tags for tokens.
    ("infer", False, [5, 6, 0, 0, 0], [1, 1, 0, 0, 0]),
    # A prompt, as it is.
    ("first_part", True, [5, 6, 0, 0, 0], [1, 1, 0, 0, 0]),
    ("first_part", True, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
])
def test_padding_is_known_from_the_ids(mode, autoregressive, ids, expected):
  gin_config.parse(["models/lm_tiny.gin"], transformer_layers_test.TINY)
  model = utils.build_model("lm", 128, 128)
  model.autoregressive = autoregressive
  dim = mtf.Dimension("length", len(ids))

  def nonpadding(tensors):
    context = transformer.Context(
        model, tensors["ids"].mesh, [dim], dim, harness.variable_dtype(),
        mode=mode, inputs=mtf.cast(tensors["ids"], tf.int32))
    return contexts.nonpadding(context, contexts.token_ids(context, [dim]))

  np.testing.assert_array_equal(
      harness.evaluate(
          nonpadding, {"ids": (np.array(ids), [dim])}, harness.random_weights),
      expected)


def test_other_inputs_than_ids_tell_nothing_of_padding():
  dim, depth = mtf.Dimension("length", 3), mtf.Dimension("d_model", 2)
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    for inputs in (None, mtf.zeros(mesh, [dim, depth]),
                   mtf.zeros(mesh, mtf.Shape([mtf.Dimension("length", 6)]),
                             tf.int32)):
      context = transformer.Context(
          None, mesh, [], dim, harness.variable_dtype(), inputs=inputs)
      ids = contexts.token_ids(context, [dim])
      assert ids is None
      assert contexts.nonpadding(context, ids) is None
