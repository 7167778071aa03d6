"""How answers are generated: one file an engine, all with the same face."""
