"""The detectors, each family in its own folder, and what they share: layers, backbones, post-processing."""
