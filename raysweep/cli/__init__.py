"""The command line: the only place that prints; one module per command, loaded when it is called."""
