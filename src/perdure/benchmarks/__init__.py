"""Task streams: each file holds one function of the same name, which returns a `TaskStream`."""
