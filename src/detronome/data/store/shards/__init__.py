"""Images in tar shards: for data sets larger than a disk, and for slow or remote file systems."""
