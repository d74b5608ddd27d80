"""COCO-format data sets: the folders and the annotation file."""
