"""What the scripts can be told, and how they are told it."""
