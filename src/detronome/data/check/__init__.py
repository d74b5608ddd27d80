"""The data doctor: what is wrong with annotations, panoptic maps and image files, what it does, how to fix it."""
