"""The gin files that come with the package."""

import os


def directory():
  """The directory with models/, meshes/, data/ and runs/.

  It is part of an installed package, and lies beside it in a checkout.
  """
  package = os.path.dirname(os.path.abspath(__file__))
  installed = os.path.join(package, "configs")
  if os.path.isdir(installed):
    return installed
  return os.path.join(os.path.dirname(package), "configs")
