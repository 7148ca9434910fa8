"""One page that answers which editor holds, for how long, at what cost, and how sure we are."""
