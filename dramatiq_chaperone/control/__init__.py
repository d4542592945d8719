"""Commands: what others ask of a worker, and how it answers."""
