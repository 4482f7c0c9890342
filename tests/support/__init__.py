"""What tests share: models, recipes, runs and references. No tests."""
