"""The trainer and everything of one training run."""
