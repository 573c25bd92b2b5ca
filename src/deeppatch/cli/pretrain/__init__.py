"""The stage pretrain: its options, what it reads and what it reports."""
