"""Worlds: generated tasks whose rule is known, and can be inferred from their demos."""
