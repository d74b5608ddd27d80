"""A live view of a run, made from its log as it grows: in the terminal, and as a page."""
