"""The stage decompose: its options, what it reads and what it reports."""
