"""How close a quantized model stays to the original, against its size."""
