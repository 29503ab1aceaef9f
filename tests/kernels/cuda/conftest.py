"""Two ways to prove GPU kernels without a GPU; each needs a process of its own.

interpreted/: what kernels compute, under Triton's interpreter. Triton reads TRITON_INTERPRET when it is imported, so
test_interpreted.py runs that folder in a child process. By hand: TRITON_INTERPRET=1 pytest tests/kernels/cuda/FOLDER.
compiled/: what the compiler makes of them; needs the variable unset.
"""

import os

collect_ignore = ["compiled", "test_interpreted.py"] if os.environ.get("TRITON_INTERPRET") else ["interpreted"]
