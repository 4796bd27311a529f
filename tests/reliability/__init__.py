"""The fault matrix: what is done to files and to the tool, and how often.  `python -m tests.reliability` runs it.

Tests anywhere in the suite count what they did with the fixture `tally`, under one of the rows of `rows.ROWS`.
"""
