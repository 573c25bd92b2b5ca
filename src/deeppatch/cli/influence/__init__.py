"""The stage influence: its options, what it reads and what it reports."""
