"""What is done to each row or number by itself."""
