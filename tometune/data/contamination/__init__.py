"""Contamination: training rows that share a run of words with an evaluation example.

`words` splits texts into normalised words, `index` holds the runs of the evaluation texts, `scan` looks for them in the
rows of a source, `judge` tells copies from stock phrases, `overlaps` keeps what was found and says it of a mix.
The method and its limits are in docs/contamination.md.
"""
