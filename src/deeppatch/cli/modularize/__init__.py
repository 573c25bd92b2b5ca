"""The stage modularize: its options, what it reads and what it reports."""
