"""Training: the supervised fine-tuning loop over TRL, its throughput, its checkpoints."""
