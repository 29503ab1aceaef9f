"""A factory with an adapter: python adapter_factory.py SMOLLM2 ADAPTER FOLDER DATA."""

import sys
from pathlib import Path

from factory_process import DEVICE, announce

from tokenworks.config import EngineSettings, ServerSettings
from tokenworks.fleet.pool import PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.server import serve
from tokenworks.protocol.messages import Adapter


def main() -> None:
    smollm2, adapter, folder, data = sys.argv[1:]
    engine = EngineSettings(device=DEVICE, context_tokens=256, cache_mb=32, packed_mb=0, threads=1)
    settings = WorkerSettings(path=smollm2, engine=engine, adapters=(Adapter("first", adapter),))
    serve([PoolModel("base", settings)], ServerSettings(port=0, adapters_folder=folder), Path(data), announce)


if __name__ == "__main__":
    main()
