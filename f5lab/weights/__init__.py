"""What is in a set of weights: names and sections, what shapes imply, and what one pass over the values says.

`stored_scans` is that pass, remembered under what was read; `anatomy` and `diffs` ask it.
"""
