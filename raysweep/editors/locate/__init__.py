"""What ROME, MEMIT and AlphaEdit share: keys, target values, second moments, and how an update spreads over layers."""
