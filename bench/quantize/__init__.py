"""How long quantizing takes, what it needs, and whether its bytes are right."""
