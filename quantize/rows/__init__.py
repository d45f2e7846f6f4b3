"""Rows of weights to bytes and back, and the error between."""
