"""Tables, the page, and the paper's own numbers."""
