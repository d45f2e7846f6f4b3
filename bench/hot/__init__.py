"""What hot experts cost, and which policies would hit how often."""
