"""Attacks on everything that `dots` reads: mutated inputs, run in a child process that is watched.

`target` says what a target is and which there are, `mutate` and `mutate_json` how inputs are
spoiled, `child` and `runner` how they are run. `python -m tests.fuzz` is the command line.
"""
