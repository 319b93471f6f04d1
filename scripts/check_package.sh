#!/usr/bin/env bash
# Builds the package as it would be published, and tries it; --help says more.

set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
Builds an sdist and, from that, a wheel; checks what they say of themselves;
and plans and trains with the wheel's files where there is no checkout.

  scripts/check_package.sh           into dist/
  scripts/check_package.sh FOLDER    into another folder
HELP
  exit
fi

EXTRAS="test"
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
mkdir -p "${1:-$ROOT/dist}"
DIST="$(cd "${1:-$ROOT/dist}" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

progress "Building in $DIST"
"$VENV_PYTHON" -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install --quiet --disable-pip-version-check build twine
rm -f "$DIST"/mtf_moe-*
"$scratch/tools/bin/python" -m build --outdir "$DIST" "$ROOT" \
  >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; fail "no package"; }
"$scratch/tools/bin/twine" check --strict "$DIST"/mtf_moe-*

progress "Trying the wheel"
# Over the checkout's own installation, of which only the dependencies count.
"$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
  --target "$scratch/site" "$DIST"/mtf_moe-*.whl
export PYTHONPATH="$scratch/site"
cd "$scratch"
for module in mtf_moe mtf_moe.configs; do
  "$VENV_PYTHON" -c "import $module; print(*$module.__path__)" \
    | grep -F "$scratch/site/" >/dev/null \
    || fail "$module is not the wheel's"
done
commands="$scratch/site/bin"
"$commands/mtf-moe-train" --version
"$commands/mtf-moe-plan" --gin_file=models/lm_tiny.gin \
  --gin_file=meshes/cpu_2x2.gin --gin_file=data/bytes.gin \
  --gin_param=batch_size=8 --gin_param=sequence_length=32 >plan.txt
"$commands/mtf-moe-train" --gin_file=runs/tiny.gin --gin_file=data/sotu.gin \
  --gin_param="run.train_steps = 2" --model_dir=model >output.txt 2>&1 \
  || { cat output.txt >&2; fail "mtf-moe-train"; }
grep "^step 2 of 2, loss" output.txt
progress "Done"
