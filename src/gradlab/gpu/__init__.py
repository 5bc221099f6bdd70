"""GPUs for jobs that share them: what a job needs, which device it gets, and NVIDIA's MPS. No torch."""
