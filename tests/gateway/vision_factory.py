"""A factory with models that see: python vision_factory.py DATA MODEL ..., each named as its folder."""

import sys
from pathlib import Path

from factory_process import DEVICE, announce

from tokenworks.config import EngineSettings, ServerSettings
from tokenworks.fleet.pool import PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.server import serve


def main() -> None:
    data, *folders = sys.argv[1:]
    engine = EngineSettings(device=DEVICE, context_tokens=768, cache_mb=8, threads=1, sequences=8)
    settings = ServerSettings(port=0, max_body_mb=1, picture_hosts=("127.0.0.1",))
    models = [PoolModel(Path(folder).name, WorkerSettings(path=folder, engine=engine)) for folder in folders]
    serve(models, settings, Path(data), announce)


if __name__ == "__main__":
    main()
