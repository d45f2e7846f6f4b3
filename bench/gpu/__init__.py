"""Hot experts on a GPU, unattended."""
