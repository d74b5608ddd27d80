"""What a run looks like: console, run log, pictures, curves, the HTML report, trackers, a live view."""
