"""Reports of runs: optimizers beside each other, and pictures of training."""
