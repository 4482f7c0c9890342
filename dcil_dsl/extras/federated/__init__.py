"""Rounds of clients that train a recipe on their own data."""
