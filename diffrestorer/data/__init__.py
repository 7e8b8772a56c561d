"""Photos, their synthesised degradations, and training pairs."""
