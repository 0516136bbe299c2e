"""`etrm plan`: the jobs that would run, why, and their cost."""
