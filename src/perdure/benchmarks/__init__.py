"""Task streams: each file defines one function of the same name, which returns a `TaskStream`."""
