"""The code of docs/serving.md that is marked as tested, run as it stands there."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TESTED = re.findall(r"^## ([^\n]*) \(tested\)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("title", "code"), TESTED, ids=[title for title, _ in TESTED])
def test_the_code_of_the_page(trained, title, code):
    export = trained.verb("export", f"run={trained.run_folder()}", "format=[merged_16bit,gguf]")
    assert export.returncode == 0, export.stderr
    done = trained.python("-c", code.replace("RUN", str(trained.run_folder())))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_two_ways_are_tested():
    assert [title for title, _ in TESTED] == ["transformers", "llama.cpp from Python"]
