import logging
from pathlib import Path

import pytest

from tometune.common.logs import log_file


def test_a_log_that_cannot_be_written_stops_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # other tests' handlers may hold closed streams
    with log_file(Path("/dev/full")):
        logging.getLogger("tometune").warning("a line")
    assert "Traceback" not in capsys.readouterr().err
