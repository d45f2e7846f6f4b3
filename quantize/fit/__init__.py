"""The recipe that errs least within a number of bytes."""
