"""Pace: what a run will take of memory and time, what its steps wait for, and what makes them faster."""
