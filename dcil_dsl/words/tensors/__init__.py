"""What words compute with on tensors. Imports torch, so that words import it late."""
