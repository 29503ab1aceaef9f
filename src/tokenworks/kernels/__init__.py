"""Arrays in, arrays out: the operations a model is written in, and the backends that run them."""
