"""A factory in a process of its own, as `tokenworks serve` runs it: python factory_process.py SMOLLM2 MINILM DATA.

On the CPU, also where there is a GPU: TOKENWORKS_TEST_DEVICE=gpu has all these tests' workers run on that.
"""

import os
import sys
from pathlib import Path

from tokenworks.config import EngineSettings, ServerSettings
from tokenworks.fleet.pool import PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.server import serve
from tokenworks.protocol.messages import Ready

CONTEXT_TOKENS = 768
DEVICE = os.environ.get("TOKENWORKS_TEST_DEVICE", "cpu")


def announce(url: str, models: dict[str, Ready]) -> None:
    print(url, flush=True)


def main() -> None:
    smollm2, minilm, crossing, data = sys.argv[1:]
    engine = EngineSettings(device=DEVICE, context_tokens=CONTEXT_TOKENS, cache_mb=192)
    models = [
        PoolModel("smollm2", WorkerSettings(path=smollm2, engine=engine)),
        PoolModel("minilm", WorkerSettings(path=minilm, engine=EngineSettings(device=DEVICE)), start="on_demand"),
        PoolModel("crossing", WorkerSettings(path=crossing, engine=EngineSettings(device=DEVICE)), start="on_demand"),
    ]
    serve(models, ServerSettings(port=0, max_body_mb=1), Path(data), announce)


if __name__ == "__main__":
    main()
