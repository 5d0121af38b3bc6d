"""Many checkpoints, cases and settings: series over a training, and sweeps on one machine or a Ray cluster."""
