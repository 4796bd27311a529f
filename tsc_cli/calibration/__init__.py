"""Making the profile of a model: texts, statistics, bases, tables and the measured curve."""
