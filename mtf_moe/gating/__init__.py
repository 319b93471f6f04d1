"""Choose: the routers, one a file, and what they share.

A router of one's own is a function, or a subclass of `Router`, under a name:

    @gating.register("noisy_switch")
    def noisy_switch(scores):
      logits = scores.logits
      if scores.train:
        logits += mtf.random_uniform(logits.mesh, logits.shape)
      gate, expert = gating.top_1(
          mtf.softmax(logits, scores.experts_dim), scores.experts_dim)
      return gating.TokenChoice([expert], [gate])
"""

from mtf_moe.gating import expert_choice
from mtf_moe.gating import expert_selection
from mtf_moe.gating import group_limited
from mtf_moe.gating import hash_router
from mtf_moe.gating import noisy_top_k
from mtf_moe.gating import ntlb
from mtf_moe.gating import sigmoid_top_k
from mtf_moe.gating import switch
from mtf_moe.gating import switch_max
from mtf_moe.gating import top_2
from mtf_moe.gating import top_n
from mtf_moe.gating.base import route
from mtf_moe.gating.router import Above
from mtf_moe.gating.router import ExpertChoice
from mtf_moe.gating.router import Router
from mtf_moe.gating.router import Scores
from mtf_moe.gating.router import TokenChoice
from mtf_moe.gating.router import find
from mtf_moe.gating.router import name_of
from mtf_moe.gating.router import names
from mtf_moe.gating.router import register
from mtf_moe.gating.router import scope_name
from mtf_moe.gating.selection import top_1

__all__ = [
    "Above",
    "ExpertChoice",
    "Router",
    "Scores",
    "TokenChoice",
    "expert_choice",
    "expert_selection",
    "find",
    "group_limited",
    "hash_router",
    "name_of",
    "names",
    "noisy_top_k",
    "ntlb",
    "register",
    "route",
    "scope_name",
    "sigmoid_top_k",
    "switch",
    "switch_max",
    "top_1",
    "top_2",
    "top_n",
]
