"""The benchmark of devices: it exports and runs, and compares outputs."""

import json

import pytest

pytest.importorskip("jax")

from scripts import device_benchmark

SIZES = {"tokens": 64, "d_model": 8, "hidden": 16, "experts": (2, 2),
         "group": 16}


def test_it_exports_and_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(device_benchmark, "cases", lambda: [
      (f"2x2_float32_16_{contender}_training", contender, SIZES, "training",
       "float32") for contender in ("bound", "einsum", "index")])
  device_benchmark.export(tmp_path)
  device_benchmark.run(tmp_path, rounds=2, workers=1)
  said = capsys.readouterr().out
  assert "index_training from einsum, gradient of inputs: " in said
  *_, einsum, index = said.splitlines()
  assert "einsum" in einsum and "index" in index
  times = json.loads((tmp_path / "times.json").read_text())
  assert len(times) == 3
  assert all(len(found["ms"]) == 2 for found in times.values())


def test_a_folder_without_programs(tmp_path):
  with pytest.raises(SystemExit, match="export them first"):
    device_benchmark.run(tmp_path, rounds=1, workers=1)


def test_names_are_told_apart():
  names = [name for name, *_ in device_benchmark.cases()]
  assert len(set(names)) == len(names)
  for name, contender, sizes, mode, dtype in device_benchmark.cases():
    x, y = sizes["experts"]
    assert name.rsplit("_", 3) == [
        f"{x}x{y}_{dtype}", str(sizes["group"]), contender, mode]
