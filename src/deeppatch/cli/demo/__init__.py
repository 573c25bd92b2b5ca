"""The stage demo: its options, what it reads and what it reports."""
