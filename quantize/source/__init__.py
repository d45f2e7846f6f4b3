"""What is quantized: checkpoints and GGUFs, their headers checked, their rows as floats."""
