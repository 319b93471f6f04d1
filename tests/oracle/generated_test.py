"""Random configurations: ours, mesh_tensorflow's, and the plain loops.

300 cases in an ordinary run. For 2,000 different ones:

    scripts/test.sh tests/oracle/generated_test.py --hypothesis-profile=deep

The counts and the largest errors are shown at the end.
"""

import hypothesis
import pytest

from tests.oracle import comparison
from tests.oracle import strategies
from tests.oracle import tally

# For the processes of pytest-xdist. An ordinary profile has 28 cases for each.
SHARDS = 12


@pytest.mark.parametrize("shard", range(SHARDS))
def test_generated_cases(shard, record_property):
  counted = tally.Tally()

  # All meshes in every third, and in the others few that take long to build.
  meshes = strategies.MESHES if shard % 3 == 1 else strategies.SMALL_MESHES

  @hypothesis.seed(shard)
  @hypothesis.given(strategies.cases(meshes))
  def check(case):
    counted.add(case, comparison.compare(case))

  check()
  record_property(tally.PROPERTY, counted.as_json())
