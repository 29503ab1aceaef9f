"""Products with weights of any format, and what happens to them before they are written."""
