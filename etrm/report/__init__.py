"""Figures, tables and records of a study."""
