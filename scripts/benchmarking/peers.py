"""Mixtures of experts for PyTorch, to compare with where they are installed.

They have no mesh, and they do a little less: experts of the flat one get 1.25
times the tokens, where two levels of that factor make it 1.56.
"""

import importlib.util
import os

from benchmarking import settings

# By contender, the class in the package mixture_of_experts.
CLASSES = {
    "lucidrains-hierarchical": "HeirarchicalMoE",
    "lucidrains-flat": "MoE",
}

_MODULES = ("torch", "mixture_of_experts")


def check(names, chosen):
  """Raises ValueError unless peers can be measured.

  Args:
    names: of contenders, peers or not.
    chosen: a list of the `Setting`s.
  """
  for name in names:
    if name not in CLASSES:
      continue
    if not all(map(importlib.util.find_spec, _MODULES)):
      raise ValueError(
          f"--contenders {name} needs packages that are not installed; do "
          "this, or leave it out: pip install torch mixture-of-experts")
    for setting in chosen:
      if setting.mesh != (1, 1):
        raise ValueError(
            f"--contenders {name} has no mesh, and cannot be compared on "
            f"--meshes {settings.pair(setting.mesh)}: give --meshes 1x1, or "
            "leave it out.")


class Peer:
  """A step of a peer, with the methods of `Contender`."""

  def __init__(self, name, setting, mode):
    """Makes the layer; the arguments are those of `Contender`."""
    # Threads that wait in a loop would be charged to whoever comes next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import mixture_of_experts
    import torch
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    x, y = setting.experts
    layer_class = getattr(mixture_of_experts, CLASSES[name])
    self._layer = layer_class(
        setting.d_model,
        num_experts=x * y if layer_class is mixture_of_experts.MoE else (x, y),
        hidden_dim=setting.hidden, second_policy_train="all",
        capacity_factor_train=settings.CAPACITY_FACTOR)
    # A sequence is what it takes for a group.
    shape = (setting.tokens // setting.group, setting.group, setting.d_model)
    self._inputs = torch.randn(shape, requires_grad=mode == "training")
    self._direction = torch.randn(shape)
    self._optimizer = torch.optim.SGD(
        self._layer.parameters(), lr=settings.LEARNING_RATE)
    self._no_grad = torch.no_grad
    self._mode = mode

  def step(self):
    """Runs it once."""
    if self._mode == "forward":
      with self._no_grad():
        self._layer(self._inputs)
      return
    self._optimizer.zero_grad()
    self._inputs.grad = None
    outputs, loss = self._layer(self._inputs)
    ((outputs * self._direction).sum() + loss).backward()
    self._optimizer.step()

  def close(self):
    self._layer = None
