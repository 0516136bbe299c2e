"""`python -m benchmarks.gpu`: all that is to be known of one GPU, in eight minutes."""
