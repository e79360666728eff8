"""Figures about scores and counts: exact intervals, AUROC, thresholds, and the distance of two samples."""
