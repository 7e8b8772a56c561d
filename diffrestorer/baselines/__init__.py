"""The six compared methods of the paper's tables."""
