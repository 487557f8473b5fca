"""Scores of a prediction against a reference: voxels, surfaces, and the challenge's lesion-wise protocols."""
