"""A capture in memory: geometry, views, labels, rows and states, and what is made of them before
they are coded.
"""
