"""Chat with a run, any model or a GGUF file, alone or side by side with another, in the browser or the terminal."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.config.app import verb
from tometune.config.chat import Interface
from tometune.config.root import Config
from tometune.runs.inputs import cache_folder

if TYPE_CHECKING:
    from tometune.chatting.loading import Loading

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for which an open page can still show why the model could not be loaded."""


@verb
def main(config: Config) -> None:
    """Find what is to be talked to, load it in the background, and serve the page or talk in the terminal."""
    from tometune.chatting.loading import Loading
    from tometune.chatting.sides import find_sides

    sides = find_sides(config)
    loading = Loading(sides, cache_folder(config), config.chat.context)
    names = [side.label for side in sides]
    if config.ui is Interface.terminal:
        from tometune.chatting.terminal import talk

        talk(names, loading, config.chat, config.seeds.generation, cache_folder(config))
    else:
        page(names, loading, config)


def page(names: list[str], loading: Loading, config: Config) -> None:
    """Serve the page first and load then, so that it is there at once; ends with Ctrl-C.

    Raises:
        UserError: Gradio is not installed, the port is taken, or the model cannot be loaded.
    """
    from importlib import util

    if util.find_spec("gradio") is None:
        from tometune.chatting.install import install

        raise UserError(f"the page needs gradio; run: {install('chat', 'gradio')} (or set ui=terminal)")
    from tometune.chatting.gradio_import import import_gradio

    import_gradio()
    from tometune.chatting.handlers import Chat
    from tometune.chatting.page import build
    from tometune.chatting.serving import serve
    from tometune.chatting.turns import Turns

    chat = Chat(names, loading, Turns(), config.chat, config.seeds.generation)
    served = build(chat)
    serve(served, config.chat, config.share)
    try:
        start = time.monotonic()
        loading.start(then=chat.turns.start)
        while not loading.wait(0.5):
            pass
        if loading.error is not None:
            time.sleep(GRACE)
            raise loading.error
        log.info("ready after %.1f s", time.monotonic() - start)
        threading.Event().wait()
    except KeyboardInterrupt:  # how a page is ended; nothing broke off
        log.info("ended")
    finally:
        chat.turns.close()
        served.close(verbose=False)


if __name__ == "__main__":
    main()
