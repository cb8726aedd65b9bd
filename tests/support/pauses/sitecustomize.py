"""Loaded by Python at the start of each daemon under test: holds a process at a chosen function, once.

CLINIMETA_TEST_PAUSE is "MODULE:FUNCTION:MARKER[:SKIP]": when FUNCTION (of MODULE, or CLASS.METHOD) is called,
MARKER is made, with the pid in it, and the call waits until somebody kills the process. The first SKIP
calls pass.
"""

import os
import sys
import time
from pathlib import Path


def _hold(function, marker, skip):
    calls = []

    def held(*args, **kwargs):
        calls.append(None)
        if len(calls) > skip:
            try:
                with open(marker, "x") as file:
                    file.write(str(os.getpid()))
            except FileExistsError:
                return function(*args, **kwargs)
            time.sleep(600)
        return function(*args, **kwargs)

    return held


class _Finder:
    def __init__(self, module, function, marker, skip):
        self.module, self.function, self.marker, self.skip = module, function, marker, skip

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            *owner, last = self.function.split(".")
            place = getattr(module, owner[0]) if owner else module
            setattr(place, last, _hold(getattr(place, last), self.marker, self.skip))

        spec.loader.exec_module = exec_module
        return spec


_asked = os.environ.get("CLINIMETA_TEST_PAUSE", "")
if _asked:
    _module, _function, _marker, *_skip = _asked.split(":")
    if not Path(_marker).exists():
        sys.meta_path.insert(0, _Finder(_module, _function, _marker, int(_skip[0]) if _skip else 0))
