"""Shared helpers that know nothing of models, data or runs: errors, files, cache, hub, processes, signals, logs."""
