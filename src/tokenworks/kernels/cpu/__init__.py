"""The C++ backend: packed weights, one parallel region per step."""
