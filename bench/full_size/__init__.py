"""Stand-ins of the real model's size that take a few GB of disk: `python -m bench.full_size`."""
