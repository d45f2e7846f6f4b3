"""The door to the native hot-expert backend."""
