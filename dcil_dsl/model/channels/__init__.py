"""Which channels of a network belong together: the dependency graph, and what follows from it."""
