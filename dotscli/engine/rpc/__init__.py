"""Devices of other machines, and this machine's devices offered to others."""
