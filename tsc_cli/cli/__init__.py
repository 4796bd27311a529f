"""The command line: it parses, calls the packages below, and reports."""
