"""The commands that an installation makes, `mtf-moe-train` and so on.

Each does what `python -m` does with its module.
"""

import runpy


def train():
  _run("mtf_moe.train")


def plan():
  _run("mtf_moe.plan")


def report():
  _run("mtf_moe.report")


def surgery():
  _run("mtf_moe.surgery")


def vocabulary():
  _run("mtf_moe.text.vocabulary")


def export():
  _run("mtf_moe.xla.export")


def run_exported():
  _run("mtf_moe.xla")


def _run(module):
  # As __main__, whose flags --help lists, and which processes that it starts
  # look for.
  runpy.run_module(module, run_name="__main__", alter_sys=True)
