#!/usr/bin/env bash
# Trains a small two-level language model on real text; --help says more.

set -euo pipefail

STEPS=""
MODEL_DIR=""
PROMPT="The American people"

usage() {
  cat <<'HELP'
Trains a small language model, whose feed-forward layers are two-level mixtures
of 4 x 4 experts, on the State of the Union addresses before 2000, for at most
five minutes on a CPU laid out as a 2x2 mesh; continues a prompt with it; and
measures it on the addresses from 2000 on.

  scripts/quickstart.sh [options]

  --steps=N         train for N steps only
  --model_dir=DIR   where to keep the model (default: models/quickstart)
  --prompt=TEXT     what the model is to continue

The first run makes .venv in the checkout and installs the package with
TensorFlow into it. A run that is stopped goes on from its last checkpoint when
started again; remove the model directory to start afresh.

  PYTHON=python3.12 scripts/quickstart.sh     with this Python
HELP
}

for argument in "$@"; do
  case "$argument" in
    --help | -h) usage; exit ;;
    --steps=*) STEPS="${argument#*=}" ;;
    --model_dir=*) MODEL_DIR="${argument#*=}" ;;
    --prompt=*) PROMPT="${argument#*=}" ;;
    *) echo "error: unknown option $argument; see --help" >&2; exit 2 ;;
  esac
done
if [[ -n "$STEPS" && ! "$STEPS" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: --steps=$STEPS is no positive number" >&2
  exit 2
fi

EXTRAS="quickstart"
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_DIR="${MODEL_DIR:-$ROOT/models/quickstart}"
mkdir -p "$MODEL_DIR"
VOCABULARY="$MODEL_DIR/sotu.model"
# TensorFlow's remarks about this machine.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

# Runs the program with the configuration of the quick start and more flags.
mtf_moe_train() {
  "$VENV_PYTHON" -m mtf_moe.train \
    --gin_file=runs/quickstart.gin \
    --gin_param="SentencePieceVocabulary.path = '$VOCABULARY'" \
    --model_dir="$MODEL_DIR" "$@"
}

if [[ ! -e "$VOCABULARY" ]]; then
  progress "Making a vocabulary from the addresses before 2000"
  "$VENV_PYTHON" -m mtf_moe.text.vocabulary \
    --files="package:sotu/data/speeches/1*.txt" \
    --model="$VOCABULARY" --vocab_size=1024
fi

progress "Training in $MODEL_DIR"
mtf_moe_train ${STEPS:+--gin_param="run.train_steps = $STEPS"}

progress "Continuing the prompt"
printf '%s\n' "$PROMPT" >"$MODEL_DIR/prompt.txt"
mtf_moe_train --gin_file=runs/sample.gin \
  --gin_param="continue_prompts.prompts = '$MODEL_DIR/prompt.txt'"

progress "Measuring on the addresses from 2000 on"
mtf_moe_train --gin_file=runs/perplexity.gin
