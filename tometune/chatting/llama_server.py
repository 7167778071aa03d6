"""A process with llama.cpp's server in it, on localhost, until its input ends; its log goes where stderr goes.

Usage: python -m tometune.chatting.llama_server FILE CONTEXT, with a key as the first line of the input; prints its
address.
"""

import os
import sys
import threading

import xllamacpp


def main(file: str, context: str) -> None:
    """Serve, to whoever knows the key: without one, any page in a browser could ask."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = int(context), 1
    params.api_keys = [sys.stdin.readline().strip()]
    params.warmup = False
    params.n_batch = 512  # between two portions of a prompt it is seen that nobody waits any more
    threading.Thread(target=_end_with_input, daemon=True).start()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # llama.cpp has threads of its own, and does not look
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


def _end_with_input() -> None:
    """End, whatever is being done: nobody waits for it any more."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
