#!/usr/bin/env bash
# Sets up and runs everything that decides whether a change is good: style, types, tests.
# Arguments go to pytest, e.g. bash scripts/test.sh tests/data -k mix
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
# The tests that look at pages in a browser need Chromium; without it, and without the right to install it, they are
# skipped.
if ! command -v chromium chromium-browser google-chrome >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "test: installing Chromium …"
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 ||
    echo "test: Chromium could not be installed; its tests are skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
