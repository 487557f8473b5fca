"""From NIfTI cases to batches of patches."""
