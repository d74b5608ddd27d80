"""Detection and panoptic metrics: from predictions and truth to the numbers papers print."""
