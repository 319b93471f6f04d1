"""What the pinned environments promise: all that is in one can be imported."""

import json
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]

# pip looks at what packages say that they need; what they really need shows
# when they are imported. Code that protoc has generated, above all, refuses a
# protobuf older than itself, and often is imported only when it is used.
_IMPORT_ALL = """
import mtf_moe
import importlib
import importlib.metadata
import json
import re
import sys

pinned = set(sys.argv[1:])
# TensorFlow loads this one itself, and it cannot be loaded twice.
pinned.discard("tensorflow-io-gcs-filesystem")
failed = {}
imported = set()
for distribution in importlib.metadata.distributions():
  name = re.sub("[-_.]+", "-", distribution.metadata["Name"]).lower()
  if name not in pinned:
    continue
  files = [str(file) for file in distribution.files or ()]
  modules = {file.split("/")[0].removesuffix(".py") for file in files
             if re.fullmatch(r"[a-zA-Z]\\w*(/__init__)?\\.py", file)}
  if not name.startswith("tensorflow"):  # It has hundreds, and imports some.
    modules |= {file.removesuffix(".py").replace("/", ".") for file in files
                if re.fullmatch(r"[a-zA-Z]\\w*(/\\w+)*_pb2\\.py", file)}
  for module in sorted(modules):
    try:
      importlib.import_module(module)
      imported.add(module)
    except Exception as error:
      failed[f"{name}: {module}"] = f"{type(error).__name__}: {error}"
print(json.dumps([failed, sorted(imported)]))
"""


def _pinned():
  """The names of all packages in all files of constraints."""
  lines = [line for path in (_ROOT / "constraints").glob("*.txt")
           for line in path.read_text().splitlines()]
  return {line.partition("==")[0].lower().replace("_", "-").replace(".", "-")
          for line in lines if "==" in line}


def test_everything_that_is_pinned_and_here_can_be_imported(tmp_path):
  result = subprocess.run(
      [sys.executable, "-c", _IMPORT_ALL, *_pinned()], cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3",
           "MPLBACKEND": "agg"},
      capture_output=True, text=True, timeout=300, check=False)
  assert result.returncode == 0, result.stderr
  failed, imported = json.loads(result.stdout.splitlines()[-1])
  assert not failed
  assert {"numpy", "sentencepiece", "sentencepiece.sentencepiece_model_pb2",
          "mesh_tensorflow", "google.protobuf.any_pb2"} <= set(imported)
