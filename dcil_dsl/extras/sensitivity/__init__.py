"""How much a network's loss rises when each layer is pruned alone."""
