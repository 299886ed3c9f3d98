"""Methods of learning one task after another: each file implements one, named after the file."""
