"""What a request costs: models with random weights, timed in pairs with the frozen model."""
