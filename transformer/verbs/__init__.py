"""The verbs of python -m transformer that decode: translate, generate and score."""
