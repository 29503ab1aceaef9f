"""How models see. A picture's way through the files:

picture     bytes to an RGB image, within limits (gateway)
processors  the image to tiles of the size the model wants, and the words that stand for them in a prompt (gateway)
pixels      a tile to the rows of numbers that its encoder takes (worker)
encoder     the encoder's program; connectors: how its rows become a decoder's embeddings; config: all of it as data
positions   where a picture's tokens lie along the axes of M-RoPE
"""
