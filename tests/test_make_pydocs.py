"""scripts/make_pydocs.py reproduces the shipped file."""

import doctest
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import make_pydocs
import pydocs_entries


@pytest.mark.nightly
def test_it_reproduces_the_shipped_file(tmp_path):
    shipped = gzip.decompress(make_pydocs.SHIPPED.read_bytes())
    header = json.loads(shipped.partition(b"\n")[0])
    if make_pydocs.made_from() != header:
        pytest.skip(f"made from {header['python']}, sources {header['sources']}")
    target = tmp_path / "made.jsonl.gz"
    # A process of its own, because pytest replaces documented functions such as sys.unraisablehook.
    subprocess.run([sys.executable, make_pydocs.__file__, "--out", target], check=True)
    made = target.read_bytes()
    assert gzip.decompress(made) == shipped  # builds of zlib compress the same lines to other bytes
    assert made[:10] == make_pydocs.SHIPPED.read_bytes()[:10], "no time and no name in the header"
    assert not any(make_pydocs.is_held_out(entry.module) for entry in make_pydocs.trained_entries())


def test_doctests():
    result = doctest.testmod(pydocs_entries)
    assert result.attempted
    assert not result.failed
