"""The stage export: its options, what it reads and what it reports."""
