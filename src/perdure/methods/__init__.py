"""The methods of learning one task after others: each file is one paper, found by its name."""
