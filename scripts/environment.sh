# Prepares a virtual environment for the other scripts. To be sourced, by bash.
#
# What the caller may set before:
#   EXTRAS   extras of setup.py to install next to "cpu", comma-separated
#   ONLY_FIND_PYTHON=yes   to define find_python, and prepare nothing
# What a person may set:
#   PYTHON   the Python to use: 3.11, 3.12 or 3.13
#   VENV     where to put the environment; .venv in the checkout by default
#   MTF_MOE_SET=floor     the oldest supported TensorFlow (Python 3.11)
#   MTF_MOE_SET=forward   the newest (Python 3.12 or 3.13)
#                         These go into .venv-floor, .venv-forward by default.
#
# Afterwards VENV_PYTHON is the environment's Python and ROOT the checkout.
# The second time, this takes a fraction of a second: a stamp in the
# environment says what was installed from which files.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Prints a line of progress: the seconds since the script began, and the text.
progress() {
  printf '[%3ds] %s\n' "$SECONDS" "$*"
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints "3.11" for a Python that runs, and nothing for one that does not (a
# pyenv shim exists for versions that are switched off, and only fails). One
# without ensurepip cannot make an environment.
python_version() {
  "$1" -c 'import ensurepip, sys; print("%d.%d" % sys.version_info[:2])' \
    2>/dev/null || true
}

constraints_of() {
  case "${MTF_MOE_SET:-default}:$1" in
    floor:3.11) echo constraints/py311-floor.txt ;;
    default:3.11) echo constraints/py311.txt ;;
    default:3.12 | forward:3.12) echo constraints/py312.txt ;;
    default:3.13 | forward:3.13) echo constraints/py313.txt ;;
  esac
}

candidate_pythons() {
  printf '%s\n' python3.11 python3.12 python3.13 python3 python
  if command -v pyenv >/dev/null; then
    # Its versions that are installed, but not switched on in this folder.
    compgen -G "$(pyenv root)/versions/3.1[123].*/bin/python"
  fi
}

# Prints the Python to use, or explains why there is none.
find_python() {
  local wanted="Python 3.11, 3.12 or 3.13"
  case "${MTF_MOE_SET:-}" in
    floor) wanted="Python 3.11" ;;
    forward) wanted="Python 3.12 or 3.13" ;;
  esac
  if [[ -n "${PYTHON:-}" ]]; then
    if [[ -z "$(constraints_of "$(python_version "$PYTHON")")" ]]; then
      fail "PYTHON=$PYTHON is not a working $wanted with its venv module."
    fi
    echo "$PYTHON"
    return 0
  fi
  local candidate
  while read -r candidate; do
    if [[ -n "$(constraints_of "$(python_version "$candidate")")" ]]; then
      echo "$candidate"
      return 0
    fi
  done < <(candidate_pythons)
  fail "found no $wanted. Install one (on Debian and Ubuntu with its" \
    "python3-venv package), or name it: PYTHON=/path/to/python $0"
}

# An interrupted installation leaves this file behind, with its process id.
unfinished_file() {
  echo "$VENV/.mtf_moe-unfinished"
}

check_no_other_installation() {
  local other
  other="$(cat "$(unfinished_file)" 2>/dev/null)" || return 0
  if [[ "$other" != "$$" ]] && kill -0 "$other" 2>/dev/null; then
    fail "process $other is installing into $VENV at this moment; wait for" \
      "it (or, if it is something else, remove $(unfinished_file))."
  fi
}

# Makes the environment, unless there is a good one.
create_environment() {
  local python="$1" version="$2" reason="" present
  if [[ -e "$VENV" ]]; then
    present="$(python_version "$VENV/bin/python")"
    if [[ -e "$(unfinished_file)" ]]; then
      reason="an earlier installation was interrupted"
    elif [[ "$present" != "$version" ]]; then
      reason="it is of Python ${present:-that no longer runs}, not $version"
    else
      return 0
    fi
    # Never empty a folder that was something else.
    if [[ ! -e "$VENV/pyvenv.cfg" && -n "$(ls -A "$VENV")" ]]; then
      fail "$VENV exists and is no virtual environment; remove it, or choose" \
        "another place with VENV=."
    fi
    progress "Making $VENV anew: $reason"
  else
    progress "Making $VENV with Python $version"
  fi
  "$python" -m venv --clear "$VENV" \
    || fail "could not make $VENV with $python; see above."
}

install_package() {
  local constraints="$1" extras="$2" tensorflow
  tensorflow="$(sed -n 's/^tensorflow-cpu==//p' "$ROOT/$constraints")"
  progress "Installing mtf_moe[$extras] with TensorFlow $tensorflow" \
    "(the first time this downloads some 400 MB)"
  echo "$$" >"$(unfinished_file)"
  # Without the trap, a Ctrl-C would look like a failure of pip.
  trap 'exit 130' INT TERM
  local failed=""
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$ROOT/$constraints" --editable "${ROOT}[$extras]" \
    || failed=yes
  trap - INT TERM
  # When pip itself gives up (no network, say), it leaves what was there.
  rm -f "$(unfinished_file)"
  if [[ -n "$failed" ]]; then
    fail "pip could not install mtf_moe[$extras]; its message is above."
  fi
}

prepare_environment() {
  case "${MTF_MOE_SET:-default}" in
    default) VENV="${VENV:-$ROOT/.venv}" ;;
    floor | forward) VENV="${VENV:-$ROOT/.venv-$MTF_MOE_SET}" ;;
    *)
      fail "MTF_MOE_SET=$MTF_MOE_SET is unknown: it is default, floor or" \
        "forward."
      ;;
  esac
  VENV_PYTHON="$VENV/bin/python"

  local python version constraints extras stamp checksum
  python="$(find_python)" || exit 1
  version="$(python_version "$python")"
  constraints="$(constraints_of "$version")"
  extras="cpu${EXTRAS:+,$EXTRAS}"
  # One stamp for each set of extras, so that scripts with different ones do
  # not make each other install again.
  stamp="$VENV/.mtf_moe-installed-${extras//,/-}"
  checksum="$(
    echo "$ROOT $version $extras"
    cat "$ROOT/setup.py" "$ROOT/$constraints"
  )"
  checksum="$(cksum <<<"$checksum")"

  check_no_other_installation
  create_environment "$python" "$version"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ]]; then
    install_package "$constraints" "$extras"
    echo "$checksum" >"$stamp"
    progress "Installed"
  fi
}

if [[ -z "${ONLY_FIND_PYTHON:-}" ]]; then
  prepare_environment
fi
