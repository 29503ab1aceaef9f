"""Low-rank adapters: what they add to products, and where they lie."""
