"""What is measured, as numbers, tables and plots."""
