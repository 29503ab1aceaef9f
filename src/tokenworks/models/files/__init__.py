"""What models lie in: file formats, what a kind of file calls a weight, how stored numbers become tensors."""
