"""Panoptic segmentation: DETR with a mask for each query, and the segments made from them."""
