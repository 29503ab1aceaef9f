"""The GPU backend: PyTorch for memory, streams and graphs, Triton for kernels. Its modules need `tokenworks[cuda]`.

A program becomes a list of launches (plan.py), which are bound to memory (launches.py) and run as a step (stepper.py),
by graph where they can be (graphs.py); a step's numbers come in one copy (inputs.py). backend.py holds it all. Weights
come by threads (loading.py) and are laid out for their products (weights.py), while kernels are compiled (compiling.py,
warming.py). Kernels lie in folders by what they do, each beside the function that launches it.
"""
