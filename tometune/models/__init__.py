"""Models: what is loaded, from where, at which precision, and the adapter on top."""
