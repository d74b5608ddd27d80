"""Where the numbers come from: which objects were found as what, precision against recall, and the worst images."""
