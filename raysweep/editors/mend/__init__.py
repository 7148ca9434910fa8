"""MEND: gradients of an edit turned into an update by a trained network."""
