"""The stage compose: its options, what it reads and what it reports."""
