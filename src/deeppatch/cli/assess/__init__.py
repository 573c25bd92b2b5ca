"""The stage assess: its options, what it reads and what it reports."""
