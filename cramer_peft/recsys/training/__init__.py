"""Training of backbones, of generators, and of a whole recommender."""
