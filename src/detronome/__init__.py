"""Detronome trains, evaluates and deploys detection transformers (DETR) on COCO-format data."""
