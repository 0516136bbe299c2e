"""Training: one run, from its tables and configuration to its run folder."""
