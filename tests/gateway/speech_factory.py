"""A factory with a model that hears: python speech_factory.py DATA MODEL."""

import sys
from pathlib import Path

from factory_process import DEVICE, announce

from tokenworks.config import EngineSettings, ServerSettings
from tokenworks.fleet.pool import PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.server import serve


def main() -> None:
    data, folder = sys.argv[1:]
    settings = WorkerSettings(path=folder, engine=EngineSettings(device=DEVICE, cache_mb=256))
    serve([PoolModel("whisper", settings)], ServerSettings(port=0, max_audio_mb=4), Path(data), announce)


if __name__ == "__main__":
    main()
