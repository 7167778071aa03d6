"""The data card of a mix: an HTML page of one file, and Markdown."""
