"""One layout per architecture family."""
