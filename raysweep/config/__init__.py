"""Search spaces: YAML → specs → a plan of trials; needs neither torch nor Ray."""
