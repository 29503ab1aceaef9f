"""Attention over pages, and K and V on their way to them."""
