"""The methods for continual learning. Each file implements the method of the same name."""
