#!/usr/bin/env bash
# Runs programs that others wrote with the layer; --help says more.

set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
Runs programs that others wrote, unchanged, with the layer of this package.

  scripts/clients.sh             both of
  scripts/clients.sh t5          T5: trains, evaluates, predicts and exports
  scripts/clients.sh mesh        the tests of mesh_tensorflow itself, but for
                                 two that need a TPU

T5 has many requirements (PyTorch, Transformers, Beam, ...: some 3 GB), so this
makes an environment of its own, .venv-clients in the checkout or what VENV
names, with Python 3.11 or what PYTHON names.
HELP
  exit
fi

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export VENV="${VENV:-$ROOT/.venv-clients}"
EXTRAS="test"
# shellcheck source=scripts/environment.sh
source "$ROOT/scripts/environment.sh"

# T5 asks for two packages that both are tensorflow_datasets: the one that was
# installed last is the one that there is.
install_t5() {
  local stamp="$VENV/.mtf_moe-installed-t5" checksum
  checksum="$(cksum <"$ROOT/constraints/t5.txt")"
  if [[ "$(cat "$stamp" 2>/dev/null)" == "$checksum" ]]; then
    return
  fi
  progress "Installing T5 (some 3 GB)"
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$ROOT/constraints/py311.txt" \
    --constraint "$ROOT/constraints/t5.txt" t5 torch sentencepiece
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --force-reinstall --no-deps --constraint "$ROOT/constraints/t5.txt" \
    tensorflow-datasets
  echo "$checksum" >"$stamp"
}

run_t5() {
  install_t5
  progress "T5"
  (cd "$ROOT" && "$VENV_PYTHON" -m pytest -n 0 -q -m slow tests/clients)
}

run_mesh() {
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$ROOT/constraints/py311.txt" mock "ortools<9.9" scipy \
    tensorflow-probability==0.23.0
  progress "The tests of mesh_tensorflow"
  local package scratch
  package="$("$VENV_PYTHON" -c 'import importlib.util as util
print(*util.find_spec("mesh_tensorflow").submodule_search_locations)')"
  scratch="$(mktemp -d)"
  # Data augmentation needs tf.contrib, which left with TensorFlow 1.
  (cd "$scratch" && PYTHONPATH="$ROOT" "$VENV_PYTHON" -m mtf_moe.run pytest -q \
    -p tests.clients.parsed_flags -p no:cacheprovider -p no:xdist \
    -o python_files='*_test.py' -k "not test_get_laidout_tensors" \
    --ignore="$package/experimental/data_aug_lib_test.py" \
    --rootdir="$scratch" "$package")
  rm -rf "$scratch"
}

case "${1:-both}" in
  t5) run_t5 ;;
  mesh) run_mesh ;;
  both)
    run_t5
    run_mesh
    ;;
  *) fail "$1 is unknown: it is t5 or mesh." ;;
esac
