"""Injection: the modules that match a configuration, the plan that is checked first, and the record that undoes it."""
