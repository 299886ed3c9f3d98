"""Task streams: one file holds one function of its name that returns a `TaskStream`."""
