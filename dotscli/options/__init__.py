"""The options of the command line, each declared once and spelled as llama.cpp spells it."""
