"""The process with llama.cpp's server in it, as the engine holds it: started, spoken to, ended, and why it ended."""

import contextlib
import re
import secrets
import subprocess
import sys
import threading
from pathlib import Path

from tometune.common.errors import UserError

ERROR = re.compile(r"^(?:[\d.]+ )?E (?:\w+ +)?(.+)$")
"""A line of llama.cpp's log that says what is wrong; the first one says the most."""

PATIENCE = 5.0
"""Seconds in which it may end by itself."""


class LlamaProcess:
    """llama.cpp's server in a process of its own, since llama.cpp ends the process at what it cannot bear.

    It is in a session of its own: Ctrl-C in the terminal stops an answer, not the server. It ends when its input does,
    and so with this process, however that ends.
    """

    def __init__(self, file: Path, context: int) -> None:
        """Start it, and wait until the file is read.

        Raises:
            UserError: llama.cpp cannot read the file.
        """
        self.key = secrets.token_urlsafe(16)
        self.address = self._error = self._last = ""
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "tometune.chatting.llama_server", str(file), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._log = threading.Thread(target=self._listen, name="llama.cpp", daemon=True)
        self._log.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # ended already; its log says why
            self._process.stdin.write(f"{self.key}\n")
            self._process.stdin.flush()
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise UserError(f"{file}: llama.cpp cannot read it ({self.why()}); export it again")
        self._error = ""  # from here on the last line says most

    def _listen(self) -> None:
        """Read its log, so that the pipe never fills; of it, what may say why it ended is kept."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if said := line.strip():
                found = ERROR.match(said)
                if found and not self.address:
                    self._error = self._error or found[1]
                self._last = said

    def why(self) -> str:
        """End it, and return how it ended and what it said of that, in a few words."""
        self.close()
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"{how}: {(self._error or self._last or 'it said nothing')[:300]}"

    def close(self) -> None:
        """End it: by itself if it can, so that it can say how."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.join(PATIENCE)
        self._process.stdout.close()
