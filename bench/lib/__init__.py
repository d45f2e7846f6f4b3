"""What the measurements share: processes, checkpoints, references, texts, tables."""
