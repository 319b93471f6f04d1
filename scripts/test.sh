#!/usr/bin/env bash
# Runs the tests; --help says more.

set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
Runs the tests of mtf_moe, in an environment of their own.

  scripts/test.sh                          all tests but the slow ones
  scripts/test.sh -m slow tests/simd       the slow ones
  scripts/test.sh tests/compat_test.py     one file, seen from the checkout
  scripts/test.sh -n 0 -x -k top_2         any options of pytest

The first run makes .venv in the checkout and installs the package with
TensorFlow into it. Tests run in as many processes as there are cores.

  PYTHON=python3.12 scripts/test.sh        with this Python
  MTF_MOE_SET=floor scripts/test.sh        on the oldest supported TensorFlow
  MTF_MOE_SET=forward scripts/test.sh      on the newest
  scripts/test.sh --find_python            only says which Python it would use
  VENV=/some/place scripts/test.sh         with the environment there
HELP
  exit
fi

if [[ "${1:-}" == --find_python ]]; then
  ONLY_FIND_PYTHON=yes
fi
EXTRAS="test"
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ -n "${ONLY_FIND_PYTHON:-}" ]]; then
  find_python
  exit
fi

cd "$ROOT"
if (($# == 0)); then
  set -- -q
fi
# TensorFlow's greeting, once for each process, is not news.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
exec "$VENV_PYTHON" -m pytest -n "$(getconf _NPROCESSORS_ONLN)" \
  --dist worksteal "$@"
