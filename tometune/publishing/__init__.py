"""A report outside of its folder: what a tracker's run of it holds, and the W&B report of the sweep's runs."""
