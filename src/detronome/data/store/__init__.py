"""Where annotations and pixels come from: the memory-mapped index and the image decoder."""
