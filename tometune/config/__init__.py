"""The schema of the config, its checks, and how a command reads it. Imports neither torch nor transformers."""
