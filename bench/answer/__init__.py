"""How fast and how exactly a model answers."""
