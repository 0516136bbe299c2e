"""Ask a finished run about tasks that it has never seen: `etrm solve`, and `etrm.load(run)`."""
