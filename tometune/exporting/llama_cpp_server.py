"""A process with llama.cpp's server in it, on localhost: renders conversations and answers prompts. Imports no torch.

Usage: python -m tometune.exporting.llama_cpp_server REQUEST.json
"""

import json
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import xllamacpp

from tometune.exporting.cores import threads

AT_ONCE = 8
"""Prompts that are decoded together."""

ANSWER_SECONDS = 3600.0
"""Longest wait for an answer: a large model on a slow machine is no error."""


def serve(path: str, longest: int, key: str) -> Any:
    """Start the server for prompts with answers of up to `longest` tokens; it ends with the object.

    It answers whoever knows the key: without one, any process or page on this machine could ask.
    """
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = AT_ONCE, AT_ONCE * (longest + 16)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.api_keys = [key]
    params.warmup = False
    return xllamacpp.Server(params)


def main(request: dict[str, Any]) -> None:
    """Ask the server what the request wants to know, and write its answers."""
    prompts, key = request["prompts"], secrets.token_urlsafe(32)
    server = serve(request["model"], max(len(prompt["ids"]) + prompt["new"] for prompt in prompts), key)
    known = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(
            base_url=server.listening_address, headers=known, timeout=ANSWER_SECONDS, trust_env=False
        ) as client,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):

        def post(route: str, body: dict[str, Any]) -> Any:
            return client.post(route, json=body).raise_for_status().json()

        def rendered(messages: list[dict[str, str]]) -> list[int]:
            text = post("/apply-template", {"messages": messages})["prompt"]
            tokens: list[int] = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})[
                "tokens"
            ]
            return tokens

        def answered(prompt: dict[str, Any]) -> str:
            greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
            text: str = post("/completion", {"prompt": prompt["ids"], "n_predict": prompt["new"], **greedy})["content"]
            return text.strip()

        said = {
            "rendered": list(map(rendered, request["conversations"])),
            "answers": list(threads.map(answered, prompts)),
        }
    Path(request["file"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
