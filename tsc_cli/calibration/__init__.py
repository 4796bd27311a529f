"""Calibration makes the profile of a model: texts, statistics, bases, tables, measured curve."""
