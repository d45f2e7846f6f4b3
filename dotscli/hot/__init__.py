"""Hot experts: who is used, who lives where, and the backend that computes on both sides."""
