"""Downloading data sets: resumable, verified, unpacked without trust. Nothing here imports torch."""
