"""Importance matrices: their files, their use, and the sums they are made of."""
