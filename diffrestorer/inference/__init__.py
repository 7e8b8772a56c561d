"""From degraded photos to restored ones."""
