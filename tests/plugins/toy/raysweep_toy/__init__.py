"""Components of a package of its own."""
