"""A language server for recipes: what every editor shows while a recipe is written."""
