"""Facts: where they come from, how they depend on each other, how they are kept."""
