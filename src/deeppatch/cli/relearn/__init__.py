"""The stage relearn: its options, what it reads and what it reports."""
