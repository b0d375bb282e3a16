"""Transfer: a generator trained on one domain, used on another, at once and after little training."""
