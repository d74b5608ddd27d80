"""D-FINE (arXiv 2410.13842): RT-DETR whose boxes are read from distributions over their edges, layer by layer."""
