"""Files, checkpoints, records and digests: everything that a run leaves on disk."""
