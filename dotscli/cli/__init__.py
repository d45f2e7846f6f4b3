"""The command line: which commands there are, and what an error becomes."""
