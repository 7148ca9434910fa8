"""Results as tables and figures: pure functions, for a notebook as for the command line, which only prints them."""
