"""Paths with characters that mean something to somebody else."""

import os

import pytest

from mtf_moe.run import paths


@pytest.mark.parametrize("character", "*?[\\\n")
def test_patterns_are_refused(character):
  path = f"/models/run{character}3]"
  with pytest.raises(ValueError) as refused:
    paths.usable(path, "--model_dir")
  message = str(refused.value)
  assert message.startswith(f"{f'--model_dir={path}'!r} has {character!r} in")
  assert "\n" not in message


@pytest.mark.parametrize("path", ["", "a\0b", "\udcff"])
def test_what_is_no_path(path):
  with pytest.raises(ValueError, match=r"\.export_path=.* is no path") as said:
    paths.usable(path, "run.export_path")
  str(said.value).encode("utf-8")


def test_a_file_system_that_is_not_there():
  with pytest.raises(ValueError, match=(
      r"^'--model_dir=s3://x' is in a file system that TensorFlow does not have"
      ": give .*, or with one of file://, gs://")):
    paths.usable("s3://x", "--model_dir")


@pytest.mark.parametrize("path, expected", [
    ("a", "a"), ("a/", "a"), ("a//", "a"), ("/", "/"), ("a/../b", "b"),
    ("a..b/...", "a..b/..."), ("a b\t]{c}ü", "a b\t]{c}ü"), ("./~", "./~"),
    ("~", "/home/me"), ("~/a/", "/home/me/a"), ("gs://bucket/a/", "gs://bucket/a"),
])
def test_other_characters_are_kept(path, expected, monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert paths.usable(path, "--model_dir") == expected


def test_two_points_after_a_link(tmp_path, monkeypatch):
  (tmp_path / "[]" / "b" / "c").mkdir(parents=True)
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "link").symlink_to("../[]/b/c")
  (tmp_path / "a" / "back").symlink_to("../a")
  monkeypatch.chdir(tmp_path / "a")
  assert paths.usable("back/..", "--model_dir") == str(tmp_path)
  with pytest.raises(ValueError, match=r"'--model_dir=link/\.\.' has '\['"):
    paths.usable("link/..", "--model_dir")
  monkeypatch.chdir(tmp_path / "[]")
  assert paths.usable("b/../c/d", "--model_dir") == "c/d"


def test_names_are_no_patterns(tmp_path):
  for name in ("run3", "run[3]", "run*"):
    (tmp_path / name).mkdir()
    (tmp_path / name / f"of {name}").write_text("")
    (tmp_path / name / "other").write_text("")
  for name in ("run3", "run[3]", "run*"):
    assert paths.names(str(tmp_path / name), "of .*") == [f"of {name}"]
  assert paths.names(str(tmp_path / "none"), ".*") == []
  assert paths.names(str(tmp_path / "run3" / "other"), ".*") == []


def test_reading_is_bounded(tmp_path):
  file = tmp_path / "file"
  assert paths.read_text(str(file)) is None
  file.write_bytes(b"a\xff\n")
  assert paths.read_text(str(file), 3) == "a\ufffd\n"
  with pytest.raises(ValueError, match="file has 3 bytes, and is not read"):
    paths.read_text(str(file), 2)
  os.mkfifo(tmp_path / "pipe")  # Opening it would wait for ever.
  (tmp_path / "endless").symlink_to("/dev/zero")
  for name in ("pipe", "endless", "."):
    with pytest.raises(ValueError, match="is no plain file"):
      paths.read_text(str(tmp_path / name))


def test_links_that_lead_outside(tmp_path):
  inside, outside = tmp_path / "in", tmp_path / "in2"
  inside.mkdir()
  outside.mkdir()
  (inside / "file").write_text("")
  for name, target in {"a": "file", "b": outside / "none", "c": "../in2",
                       "d": "../in/file", "e": "b"}.items():
    (inside / name).symlink_to(target)
  assert [name for name in sorted(os.listdir(inside)) if paths.leads_outside(
      str(inside / name), str(inside))] == ["b", "c", "e"]
  (tmp_path / "link").symlink_to(inside)  # To the directory itself.
  assert not paths.leads_outside(
      str(tmp_path / "link" / "file"), str(tmp_path / "link"))
