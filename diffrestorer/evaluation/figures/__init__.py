"""The figures of the documentation and of the paper."""
