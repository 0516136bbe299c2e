"""ARC tasks: their sources, grids and tokens, variants, and content."""
