#!/usr/bin/env bash
# Installs the dev packages, then checks style, types and import layers and runs the tests.
# Usage: bash scripts/test.sh [--all] [PYTEST ARGUMENTS]      for example: bash scripts/test.sh tests/data -k mix
# --all also runs the tests marked `nightly`.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=(dev)
marks=(-m "not nightly")
if [ "${1:-}" = --all ]; then
  extras=(dev nightly)
  marks=()
  shift
fi
bash scripts/setup.sh "${extras[@]}"
# The tests that look at pages in a browser need Chromium; they are skipped if it is missing and cannot be installed.
if ! command -v chromium chromium-browser google-chrome >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "test: installing Chromium …"
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 ||
    echo "test: Chromium could not be installed; its tests are skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/mypy scripts
.venv/bin/lint-imports --no-cache
.venv/bin/python -m pytest -n auto --dist worksteal "${marks[@]}" "$@"
