"""The stage compare: its options, what it reads and what it reports."""
