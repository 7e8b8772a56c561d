"""Readers and writers of single image formats; `diffrestorer.data.images` chooses among them."""
