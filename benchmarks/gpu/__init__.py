"""`python -m benchmarks.gpu`: all that is to be known of one GPU, in eight minutes."""

import os

# Ask whether there is a GPU without touching it: a process that has cannot be forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
