"""Building blocks that more than one part of a detector uses."""
