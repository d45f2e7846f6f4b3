"""Hot experts of a load: whether, on which device, and what they do while the engine runs."""
