"""Images and annotations: from files on disk to batches."""
