"""Chat with a run's model, any other model or a GGUF file, alone or side by side: in the browser or the terminal."""

import logging
import socket
import threading
from importlib import util

from tometune.common.errors import UserError
from tometune.config.app import verb
from tometune.config.root import Config, Interface
from tometune.runs.inputs import cache_folder

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Load the models, then serve the page or chat in the terminal until the user ends it.

    Raises:
        UserError: a model cannot be found or loaded, Gradio is not installed, or the port is taken.
    """
    from tometune.chatting.targets import find_targets, load_engines

    page = config.ui is Interface.page
    if page and util.find_spec("gradio") is None:
        raise UserError("the page needs gradio; run: bash scripts/setup.sh chat, or pip install gradio; or ui=terminal")
    if page and config.chat.port is not None:
        try:  # before the model is loaded, which may take minutes
            socket.create_server(("127.0.0.1", config.chat.port)).close()
        except OSError as error:
            raise UserError(f"chat.port={config.chat.port}: {error}; choose another port, or null") from error
    targets = find_targets(config)
    models = [target.label for target in targets]
    engines = load_engines(targets, cache_folder(config), config.chat.context)
    try:
        if page:
            from tometune.chatting.server import serve

            serve(models, engines, config.chat, config.seeds.generation, config.share)
            threading.Event().wait()
        else:
            from tometune.chatting.terminal import run

            run(models, engines, config.chat, config.seeds.generation)
    except KeyboardInterrupt:
        log.info("ended")
    finally:
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
