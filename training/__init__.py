"""Training of the embedded checkpoint; `scripts/train_tiny.py` runs it."""
