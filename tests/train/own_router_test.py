"""The router that the README shows, in a file of one's own."""

import tensorflow.compat.v1 as tf

from tests import documented
from tests.train import program


def readme_example():
  """The block of Python that registers a router."""
  example, = (block for block in documented.python_of("README.md")
              if "gating.register" in block)
  return example


def test_it_is_short():
  _, _, router = readme_example().partition('register("noisy_switch")\n')
  assert len(router.strip().splitlines()) <= 9


def test_it_trains_and_evaluates(tmp_path):
  program.write_text(tmp_path)
  (tmp_path / "my_routers.py").write_text(readme_example())
  arguments = program.program(
      tmp_path, "MoE2D.moe_gating = ('top_2', 'noisy_switch')",
      "run.train_steps = 2")
  arguments["args"].append("--module_import=my_routers")
  result = program.run_arguments(arguments)
  assert "step 2 of 2" in result.stdout
  events, = (tmp_path / "model").glob("events.*")
  tags = {value.tag for event in tf.train.summary_iterator(str(events))
          for value in event.summary.value}
  layer = "moe/transformer/block_000/layer_001/MoE2D"
  assert f"{layer}/outer/choices_2/kept" in tags
  assert f"{layer}/inner/choices_1/kept" in tags
  assert f"{layer}/inner/choices_2/kept" not in tags


def test_without_the_import(tmp_path):
  program.write_text(tmp_path)
  result = program.run(
      tmp_path, "MoE2D.moe_gating = 'noisy_switch'", check=False)
  assert result.returncode == 1
  *_, said = result.stderr.strip().splitlines()
  assert said.startswith("mtf_moe.train: MoE2D.moe_gating = 'noisy_switch' is "
                         "not known. Choose one of: ")
  assert said.endswith("or --module_import the file that registers it.")
  assert not (tmp_path / "model").exists()
