"""What decides beside its text whether a row may be drawn: filters, near-duplicates, scores."""
