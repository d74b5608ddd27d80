"""Augmentation: parameters drawn from a counter-based generator, then applied."""
