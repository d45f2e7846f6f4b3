"""The terminal: streams, progress, and what text does on a screen."""
