"""The methods of learning one task after others: one file is one paper, found by its name."""
