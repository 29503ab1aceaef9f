"""What is kept between steps, as accounts: blocks (who holds them), prefix (which are there), layout (bytes)."""
