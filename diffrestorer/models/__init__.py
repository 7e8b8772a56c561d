"""The networks of the paper, and what only mini has."""
