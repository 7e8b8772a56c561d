"""From downloads to verified pairs on disk."""
