#!/usr/bin/env bash
# All benchmarks of speed one after the other, on the device that JAX takes; the long
# ones in their short form, which is written to `runs/benchmarks`. Needs PyTorch besides
# `sevo-jax[train]`.
set -euo pipefail
cd "$(dirname "$0")"

python smoothing.py --quick
python optimizer_step.py
python large.py --quick
python training.py
python backbones.py --rounds 1 --torch-steps 20
