"""The stage evaluate: its options, what it reads and what it reports."""
