"""Chat with a run's model, any other model or a GGUF file, alone or side by side: in the browser or the terminal."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from importlib import util
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.config.chat import Interface
from tometune.config.compare import ONLY_PREPARE
from tometune.config.export import ONLY_EXPORT
from tometune.config.main import verb
from tometune.config.root import Config
from tometune.runs.inputs import cache_folder

if TYPE_CHECKING:
    from tometune.chatting.engine import Loading

log = logging.getLogger(__name__)

IGNORES = {
    **dict.fromkeys(
        ("data", "lora", "trainer", "eval", "tracking", "seeds.data", "seeds.order", "seeds.adapter"),
        "chat does not read it; leave it out",
    ),
    "sweep": "only train and report read it; leave it out",
    "plan": "only train reads it; leave it out",
    "publish": "only report reads it; leave it out",
    **ONLY_PREPARE,
    **ONLY_EXPORT,
}
"""Keys that chat does not read, and the message for a user who sets them."""

ERROR_SECONDS = 2.0
"""Time for an open page to show why the model could not be loaded."""


@partial(verb, ignores=IGNORES)
def main(config: Config) -> None:
    """Find the models, load them in the background, and serve the page or chat in the terminal."""
    from tometune.chatting.engine import Loading, load_engines
    from tometune.chatting.targets import find_targets

    targets, cache = find_targets(config), cache_folder(config)
    models = [target.label for target in targets]
    loading = Loading(partial(load_engines, targets, cache, config.chat.context))
    try:
        if config.ui is Interface.terminal:
            from tometune.chatting.terminal import run

            run(models, loading, config.chat, config.seeds.generation, cache / "chat_history")
        else:
            serve_page(config, models, loading)
    finally:
        for engine in loading.engines:
            engine.close()


def serve_page(config: Config, models: list[str], loading: Loading) -> None:
    """Serve the page until Ctrl-C. Loading starts once the page can be opened.

    Raises:
        UserError: Gradio is not installed, the port is taken, or a model cannot be loaded.
    """
    from tometune.chatting.engine import install_command
    from tometune.chatting.server import import_gradio, serve

    if util.find_spec("gradio") is None:
        raise UserError(f"the page needs gradio; run: {install_command('chat', 'gradio')} (or set ui=terminal)")
    import_gradio()
    from tometune.chatting.page import CSS, ChatPage

    page = ChatPage(models, loading, config.chat, config.seeds.generation).build()
    serve(page, config.chat, config.share, CSS)
    start = time.monotonic()
    try:
        loading.start()
        loading.wait()
        if loading.error is not None:
            time.sleep(ERROR_SECONDS)
            raise loading.error
        log.info("ready after %.1f s", time.monotonic() - start)
        threading.Event().wait()
    except KeyboardInterrupt:  # the usual way to end it
        log.info("ended")
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    main()
