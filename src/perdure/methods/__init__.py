"""How one task is learned after others: one file is one paper, found by its name."""
