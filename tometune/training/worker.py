"""The process that trains under Unsloth: `python -m tometune.training.worker CACHE PIPE`, started by `apart`.

Unsloth changes the libraries of the process it is imported in. Here nothing but the training is done; the process that
was started by the user scores with the libraries as they are.
"""

import json
import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.common.logs import StderrHandler, log_file
from tometune.common.signals import told_to_stop
from tometune.models import unsloth_backend
from tometune.runs.inputs import cache_folder, mix_of
from tometune.runs.stored import stored_config

GO = "go"
"""The line on stdin that begins the training, with the run's folder after it."""


def main() -> None:
    """Import Unsloth, wait for the word, train, and send what came of it through the pipe, a JSON object a line."""
    cache, pipe = Path(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[StderrHandler()])
    logging.getLogger("tometune").setLevel(logging.INFO)
    with told_to_stop(), os.fdopen(pipe, "w", encoding="utf-8", buffering=1) as file:

        def send(**message: Any) -> None:
            file.write(json.dumps(message) + "\n")

        try:
            unsloth_backend.prepare(cache)
            word, _, folder = sys.stdin.readline().strip().partition(" ")
            if word != GO:
                return
            threading.Thread(target=_end_with_the_parent, daemon=True).start()
            with log_file(Path(folder) / "train.log"), unsloth_backend.quiet():
                send(trained=_train(Path(folder), lambda metrics, step: send(log=metrics, step=step)))
        except UserError as error:
            send(wrong=str(error))
            sys.exit(2)
        except SaveError as error:
            send(full=str(error))
            sys.exit(1)
        except KeyboardInterrupt:  # the parent says what there is to say
            sys.exit(130)


def _train(folder: Path, on_log: Any) -> dict[str, Any]:
    """Train the run of a folder; the data is in the cache, the adapter is the one that PEFT makes of the same seed."""
    from tometune.common.seeding import seed_everything
    from tometune.data.tokens import tokenise
    from tometune.models.source import locate
    from tometune.models.tokenizer import load_tokenizer
    from tometune.training.sft import fit

    config = stored_config(folder)
    cache = cache_folder(config)
    source = locate(config.model, cache)
    tokenizer = load_tokenizer(source)
    mix = mix_of(config, cache)
    tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
    seed_everything(config.seeds.adapter)
    whole = not config.lora.enabled
    model = unsloth_backend.load(source, config.trainer.max_length, whole)
    if not whole:
        model = unsloth_backend.add_adapter(model, config.lora, config.seeds.adapter)
    return asdict(fit(model, tokenizer, tokens, config, folder, on_log, cache, unsloth=True))


def _end_with_the_parent() -> None:
    """End at once when the parent has gone (its end of stdin closes): another may be about to take the run over."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
