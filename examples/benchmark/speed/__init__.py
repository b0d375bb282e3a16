"""The cost of a request: models with random weights, timed in pairs with the frozen model."""
