"""The stage annotate: its options, what it reads and what it reports."""
