"""Start training processes: ranks, nodes, SLURM jobs."""
