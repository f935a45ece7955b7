"""A page that shows what a model does, and its API: `python -m transformer page`."""
