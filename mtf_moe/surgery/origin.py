"""What a checkpoint of surgery came from, kept beside it."""

import dataclasses
import json
import os

from mtf_moe.run import console
from mtf_moe.run import paths
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.surgery.moves import Options
from mtf_moe.train import differences
from mtf_moe.train import made_with
from mtf_moe.train.made_with import MadeWith
from mtf_moe.train.made_with import Record

FILE = "surgery.json"


@dataclasses.dataclass(frozen=True)
class Origin:
  """A checkpoint, and what is known of it.

  Attributes:
    path: its path.
    step: its step; None where it has none.
    record: what it was made with; None where that is not known.
    now: what the new checkpoint is made for.
  """

  path: str
  step: int | None
  record: Record | None
  now: MadeWith

  @classmethod
  def compared(cls, path: str, step: int | None, configured: ConfiguredModel
               ) -> "Origin":
    """Warns of what is not as it was, besides the shapes of variables.

    Args:
      path: of the checkpoint.
      step: that it has, or None.
      configured: the model that the new one is for.

    Returns:
      an Origin
    """
    now = MadeWith.configured(configured, reads_data=False)
    record = differences.compare_source(path, now, differences.Use.CHANGE)
    if record is None:
      console.say(
          f"{os.path.dirname(path)} has no {made_with.FILE}: vocabularies and "
          "routers are not compared, only variables")
    return cls(path, step, record, now)

  def keep(self, model_dir: str, step: int, options: Options):
    """Writes what is known into the directory of the new checkpoint.

    Args:
      model_dir: that directory.
      step: of the new checkpoint.
      options: with which it was made.
    """
    made_with.keep(model_dir, self._record_of_new(step))
    paths.replace_text(os.path.join(model_dir, FILE), json.dumps({
        "from": os.path.abspath(self.path) if not paths.is_remote(self.path)
                else self.path,
        "step": self.step, "new_step": step,
        "options": dataclasses.asdict(options),
        "made_with": self.record and dataclasses.asdict(self.record),
    }, indent=1, default=str) + "\n")

  def _record_of_new(self, step):
    """What training finds in the new directory when it goes on from there.

    Weights are of the old text and seed. The place in the data is that of the
    old run, unless the steps are counted anew.
    """
    if self.record is None:
      return Record(dataclasses.replace(self.now, place={}, seed={}))
    old = self.record.settings
    goes_on = step == (self.step or 0)
    settings = dataclasses.replace(
        self.now, data=old.data, seed=old.seed,
        place=old.place if goes_on else {})
    return dataclasses.replace(
        self.record.updated(settings, step),
        began=self.record.began if goes_on else None, configuration=None)
