"""How others name what a family calls its own: one table a family, into our state-dict keys."""
