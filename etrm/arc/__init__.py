"""ARC tasks: what they are, where they come from, how they become tokens and variants."""
