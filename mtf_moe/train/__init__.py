"""Training: the command line, progress, checkpoints, resuming, evaluation.

    python -m mtf_moe.train --gin_file=runs/quickstart.gin --model_dir=...
"""
