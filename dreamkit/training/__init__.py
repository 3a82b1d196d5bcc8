"""The loops that drive a generator by an objective."""
