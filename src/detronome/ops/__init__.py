"""Pure tensor functions: boxes, padding, assignment, deformable attention."""
