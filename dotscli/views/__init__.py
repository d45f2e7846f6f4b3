"""What a person reads: tables, bars, maps and plots, made of plain values."""
