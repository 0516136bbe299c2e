"""Refinement of answers by the demos: latent search, test-time training, and their controls."""
