"""Training on local text: data, the command line, progress, resuming.

    python -m mtf_moe.train --gin_file=runs/quickstart.gin --model_dir=...
"""
