"""The stage correct: its options, what it reads and what it reports."""
