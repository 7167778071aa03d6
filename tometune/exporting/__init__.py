"""Exports of a finished run: the adapter, the merged model, GGUF; the gate they pass, and the hub."""
