"""The web page, `diffrestorer app`."""
