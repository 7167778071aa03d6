"""Chat with a run's model, any other model or a GGUF file, alone or side by side: in the browser or the terminal.

tometune chat run=outputs/RUN_ID against=base  # next to its base model
tometune chat run=outputs/RUN_ID ui=terminal
tometune chat model=smollm2_135m chat.temperature=0
tometune chat gguf=model-q8_0.gguf
"""

import logging
import threading
from concurrent.futures import Future
from importlib import util
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.root import Config, Interface
from tometune.runs.inputs import cache_folder

if TYPE_CHECKING:
    from tometune.chatting.conversation import Engine

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Serve the page and load the models, or load them and chat in the terminal, until the user ends it.

    Raises:
        UserError: a model cannot be found or loaded, Gradio is not installed, or the port is taken.
    """
    from tometune.chatting.targets import find_targets, load_engines

    page = config.ui is Interface.page
    if page and util.find_spec("gradio") is None:
        raise UserError("the page needs gradio; run: bash scripts/setup.sh chat, or pip install gradio; or ui=terminal")
    targets = find_targets(config)
    models = [target.label for target in targets]
    loaded: Future[list[Engine]] = Future()
    try:
        if page:
            with quick_imports():
                from tometune.chatting.page import ChatPage
            titles = [target.title for target in targets]
            titles = titles if len(set(titles)) == len(titles) else models  # runs that differ in other settings
            ChatPage(models, titles, loaded, config.chat, config.seeds.generation).serve(config.share)
        engines = load_engines(targets, cache_folder(config), config.chat.context)
        loaded.set_result(engines)
        if page:
            threading.Event().wait()
        else:
            from tometune.chatting.terminal import Terminal

            Terminal(models, engines, config.chat, config.seeds.generation).run()
    except KeyboardInterrupt:
        log.info("ended")
    finally:
        loaded.cancel()  # otherwise a prompt that waits for the models keeps the process alive


if __name__ == "__main__":
    main()
