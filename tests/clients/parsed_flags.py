"""A plugin of pytest: absl's flags have been parsed, as by `absltest.main`."""

from absl import flags

flags.FLAGS(["pytest"], known_only=True)
