"""Every form of a detector measured beside the others: time, memory, accuracy, difference.

`forms` (what there is) · `calls` (which images, in which batches) · `messages`, `child`, `process` (a process for each
form) · `rounds` (measured in turn) · `records` (what was found)
"""
