"""demo: the four stages on the embedded digits, ending in the table that says what the repair gained and cost."""
