"""Tasks and their variants as tables on disk."""
