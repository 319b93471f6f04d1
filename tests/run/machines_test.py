"""What TF_CONFIG may say, and what it may not."""

import pytest

from mtf_moe.run import machines

CLUSTER = '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {}}'


@pytest.mark.parametrize("text", [
    None, "{}", '{"cluster": {}}', '{"environment": "cloud"}',
    '{"task": {}}', '{"cluster": {}, "task": {"type": "worker", "index": 0}}'])
def test_one_machine(text, monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  if text is not None:
    monkeypatch.setenv("TF_CONFIG", text)
  machines.check_only_one()


@pytest.mark.parametrize("text, said", [
    (CLUSTER, "has 'cluster'"),
    ('{"cluster": {"chief": ["a:1"]}}', "has 'cluster'"),
    ('{"cluster": ["a:1"]}', "has 'cluster'"),
    ('{"cluster": null}', "has 'cluster'"),
    ('{"session_master": "grpc://a:1"}', "has 'session_master'"),
    ('{"task": {"type": "ps"}}', "has 'task'"),
    ('{"task": {"index": 1}}', "has 'task'"),
    ('{"task": []}', "has 'task'"),
    ("", "is no JSON object"), ("{cluster", "is no JSON object"),
    ("[1]", "is no JSON object"), ("[" * 100000, "is no JSON object"),
])
def test_others_are_refused(text, said, monkeypatch):
  monkeypatch.setenv("TF_CONFIG", text)
  with pytest.raises(ValueError, match=f"TF_CONFIG = .* {said}") as refused:
    machines.check_only_one()
  message = str(refused.value)
  assert message.endswith("unset TF_CONFIG.")
  assert len(message) < 500 and "\n" not in message


def test_a_tpu_that_is_not_there():
  with pytest.raises(ValueError, match=(
      r"^--tpu=nothere was not found .*: give the name of a Cloud TPU")):
    machines.check_tpu("nothere", None, None)
  machines.check_tpu("grpc://10.0.0.2:8470", None, None)
  machines.check_tpu(None, None, None)
