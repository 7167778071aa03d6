"""The code of docs/serving.md that is marked as tested, run as it stands there."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TESTED = re.findall(r"^## ([^\n]*) \(tested\)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("title", "code"), TESTED, ids=[title for title, _ in TESTED])
def test_the_code_of_the_page(trained, exported, title, code):
    done = trained.python("-c", code.replace("RUN", str(exported.parent)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_two_ways_are_tested():
    assert [title for title, _ in TESTED] == ["transformers", "llama.cpp from Python"]
