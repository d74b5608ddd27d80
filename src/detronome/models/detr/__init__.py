"""Classic DETR (arXiv 2005.12872)."""
