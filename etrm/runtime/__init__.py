"""The process that runs: logs, interruption, ranks, the run lock, the software environment."""
