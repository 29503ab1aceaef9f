"""A factory with a model that sees: python vision_factory.py MODEL DATA."""

import sys
from pathlib import Path

from factory_process import announce

from tokenworks.config import EngineSettings, ServerSettings
from tokenworks.fleet.pool import PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.server import serve


def main() -> None:
    model, data = sys.argv[1:]
    engine = EngineSettings(context_tokens=768, cache_mb=8, threads=1, sequences=8)
    settings = ServerSettings(port=0, max_body_mb=1, picture_hosts=("127.0.0.1",))
    serve([PoolModel("seer", WorkerSettings(path=model, engine=engine))], settings, Path(data), announce)


if __name__ == "__main__":
    main()
