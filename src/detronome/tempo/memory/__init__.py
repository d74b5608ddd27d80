"""How much memory a run needs at its fullest moment, and for what, known before it starts and without a GPU."""
