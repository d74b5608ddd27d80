"""`python -m detronome` is the command line; `torchrun -m detronome` needs it."""

from detronome.cli import main

main()
