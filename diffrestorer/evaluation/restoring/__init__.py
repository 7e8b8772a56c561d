"""Restoring a suite with each method."""
