"""Data: sources → standardised conversations → mix → tokens → packs."""
