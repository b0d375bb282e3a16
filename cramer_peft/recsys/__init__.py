"""Tools for sequential recommenders: data, splits, requests, evaluation."""
