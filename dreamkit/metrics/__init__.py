"""The embedded judge and the scores it gives."""
