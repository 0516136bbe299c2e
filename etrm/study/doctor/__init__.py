"""`etrm doctor`: leftovers of crashes, and the command that mends each."""
