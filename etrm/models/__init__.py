"""The decoder, the ACT step, and the model that joins them to a context source."""
