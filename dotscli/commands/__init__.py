"""The body of every command, in a module of the command's name."""
