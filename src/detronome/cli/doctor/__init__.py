"""`detronome doctor`, also `--explain` and `--updates`.

It needs none of our packages but those of the command line: others may be missing or broken.
"""
