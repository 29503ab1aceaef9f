"""Models that hear: Whisper (arXiv 2212.04356).

mel        a recording as the encoder is shown it: the loudness of 80 or 128 tones, a hundred times a second
config     what a model is, as data
encoder    its program from thirty seconds of that to rows
decoder    its program from those rows and tokens to logits
vocabulary its special tokens, and which tokens it must not write
"""
