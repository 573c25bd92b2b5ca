"""The command line: shared options, names of artifacts, and one folder for each stage."""
