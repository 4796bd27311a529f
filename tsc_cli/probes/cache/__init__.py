"""Measure where the rows of a cache are redundant.

`turning` finds how keys turn, `rows` reads a snapshot layer by layer, `measures` knows energies and
bits, `ridge` fits linear maps and scores them on rows that they were not fitted on, `directions`
says what is compared with what, `snapshots` counts the rows that the snapshot before holds, `job`
is the whole of `tsc probe-cache`, `report` and `figure` show it.
"""
