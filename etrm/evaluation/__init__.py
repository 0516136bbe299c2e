"""Decoding, voting and scoring of a trained run on held-out tasks."""
