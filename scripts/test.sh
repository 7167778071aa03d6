#!/usr/bin/env bash
# Sets up and runs everything that decides whether a change is good: style, types, tests.
# Arguments go to pytest, e.g. bash scripts/test.sh tests/data -k mix
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n auto --dist loadfile "$@"
