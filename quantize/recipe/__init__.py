"""Which type each tensor gets: presets, overrides, the types of another file."""
