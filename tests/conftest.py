"""What all tests need: the compatibility patches, and TF1 graphs."""

import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
import gin
import pytest
import tensorflow.compat.v1 as tf

assert mtf_moe
tf.disable_v2_behavior()


@pytest.fixture(autouse=True)
def clear_gin():
  yield
  gin.clear_config()
