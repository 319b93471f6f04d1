"""Configurations for tests, read as the command line reads them."""

import os

import gin
import mesh_tensorflow

from mtf_moe.run import config_files


def parse(files=(), bindings=()):
  """Forgets everything; reads mesh_tensorflow's defaults, files, bindings.

  Args:
    files: names of gin files, relative to the packaged configurations.
    bindings: further lines of gin.
  """
  gin.clear_config()
  gin.add_config_file_search_path(config_files.directory())
  gin.parse_config_file(os.path.join(
      os.path.dirname(mesh_tensorflow.__file__), "transformer", "gin",
      "defaults.gin"))
  gin.parse_config_files_and_bindings(
      list(files), list(bindings), finalize_config=False)
  config_files.check()
  gin.finalize()
