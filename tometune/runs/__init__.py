"""A run: its folder and record, its identity, its resolved inputs, and what a finished run consists of."""
