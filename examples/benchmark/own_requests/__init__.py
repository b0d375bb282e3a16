"""The study of requests that belong to a next item: stated ones, or the texts of the items before, as in the paper."""
