"""The slow, obvious backend: the living definition of every operation, and the oracle of every other backend.

Values between instructions are float32, as the program says; inside an instruction everything is computed in
float64, so that what a fast backend is held against has no rounding worth mentioning of its own. K and V are rounded
to the cache's dtype when they are written; a cache of int8 also means queries of 8 bits (see kernels/cpu/attend).
Weights are blown up to float32: this backend is for tests.
"""

from tokenworks.kernels.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
