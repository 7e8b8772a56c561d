"""The models of each degradation, a module per class: see `diffrestorer.data.synthesis`."""
