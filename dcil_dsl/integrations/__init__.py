"""Recipes inside other people's training loops. Each file needs its library."""
