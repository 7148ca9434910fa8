"""The belief-revision testbed: knowledge graph, generative model, corpus, ideal agent, evaluation points, metrics."""
