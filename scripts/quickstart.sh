#!/usr/bin/env bash
# A complete run on any machine: SmolLM2-135M, LoRA, 1,000 conversations about Python's documentation, four tasks scored before
# and after training. No GPU, no model hub, no account. Arguments are passed on, e.g. bash scripts/quickstart.sh seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m tometune.train +experiment=quickstart "$@"
