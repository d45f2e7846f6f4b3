"""A conversation: what is said, what a line means, how an answer is shown."""
