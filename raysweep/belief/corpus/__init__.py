"""Sentences about facts, and the documents that a model is trained on."""
