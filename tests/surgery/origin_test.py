"""What a checkpoint of surgery came from: compared, and kept beside it."""

import dataclasses
import json

import pytest

from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options
from mtf_moe.train import made_with
from mtf_moe.train.made_with import MadeWith
from mtf_moe.train.made_with import Record
from tests import reversed_vocabulary
from tests.surgery.checkpoints import MOE
from tests.surgery.checkpoints import configured
from tests.surgery.checkpoints import experts
from tests.surgery.checkpoints import save

TEXT = {"TextFiles.glob": {"bytes": 10, "content": "of the text", "files": 1},
        "text_dataset.shuffle_seed": 0}
PLACE_IN_DATA = {"run.batch_size (in sequences)": 99}


@pytest.fixture
def old(tmp_path):
  """A directory with a checkpoint of four experts, and what it was made with.
  """
  model = experts(4)
  save(model, tmp_path / "old")
  now = MadeWith.configured(model, reads_data=False)
  settings = dataclasses.replace(
      now, data=TEXT, place=PLACE_IN_DATA, seed={"train_model.seed": 3})
  made_with.keep(str(tmp_path / "old"), Record(
      settings, made_with.Beginning("elsewhere/model.ckpt-2", 2)))
  return tmp_path / "old"


def test_other_experts_are_what_it_is_for(old, heard):
  operation.prepare(str(old), experts(2, 4), Options())
  line, = heard
  assert line == (f"say: not as when the checkpoint in {old} was made: "
                  "MoE.levels = [2, 4], and was [4]")
  heard.clear()
  operation.prepare(str(old), experts(4), Options())
  assert not heard


@pytest.mark.parametrize("binding, said", [
    ("MoE.moe_gating = 'switch'", "MoE.moe_gating = 'switch', and was 'top_2'"),
    ("num_layers = 2",
     "make_layer_stack.num_layers = %num_layers = 2, and was 1"),
    ("MoE.activation = 'gelu'", "MoE.activation = 'gelu', and was 'relu'"),
    (reversed_vocabulary.BINDING,
     "run.vocabulary = %vocabulary = class ReversedVocabulary, content "),
])
def test_what_changes_the_function_is_told(binding, said, old, heard):
  operation.prepare(str(old), configured(
      *MOE, "MoE.levels = [4]", binding), Options())
  line, = heard
  assert line.startswith(
      f"warn: not as when the checkpoint in {old} was made: {said}")
  assert ("embeddings are of other pieces of text" in line) == (
      "vocabulary" in line)


def test_it_is_told_where_nothing_is_known(old, heard):
  (old / made_with.FILE).unlink()
  operation.prepare(str(old), experts(8), Options())
  assert heard == [
      f"say: {old} has no made_with.json: vocabularies and routers are not "
      "compared, only variables"]


def test_what_it_came_from_is_kept(old, tmp_path):
  found = operation.prepare(str(old), experts(2), Options(noise=0.5))
  found.write(str(tmp_path / "new"))
  kept = json.loads((tmp_path / "new" / "surgery.json").read_text())
  assert kept["from"] == f"{old}/model.ckpt-7"
  assert kept["step"] == 7 and kept["new_step"] == 7
  assert kept["options"]["noise"] == 0.5
  before = json.loads((old / made_with.FILE).read_text())
  assert kept["made_with"] == before
  record = made_with.read(str(tmp_path / "new"))
  # The weights have seen the old text, and training goes on in it.
  assert record.settings.data == TEXT
  assert record.settings.place == PLACE_IN_DATA
  assert record.settings.seed == {"train_model.seed": 3}
  assert record.settings.model["MoE.levels"] == [2]
  assert record.began.step == 2
  assert record.history == (
      {"step": 7, "changed": {"MoE.levels": [4]}},)


def test_steps_that_are_counted_anew(old, tmp_path):
  """The data is then read from its beginning."""
  operation.prepare(str(old), experts(2), Options(), step=0).write(
      str(tmp_path / "new"))
  record = made_with.read(str(tmp_path / "new"))
  assert record.began is None and record.settings.place == {}


def test_nothing_is_kept_of_what_is_not_known(old, tmp_path):
  (old / made_with.FILE).unlink()
  operation.prepare(str(old), experts(2), Options()).write(
      str(tmp_path / "new"))
  record = made_with.read(str(tmp_path / "new"))
  assert record.settings.model["MoE.levels"] == [2]
  for section in ("data", "place", "seed"):
    assert getattr(record.settings, section) == {}
  kept = json.loads((tmp_path / "new" / "surgery.json").read_text())
  assert kept["made_with"] is None
