"""Loaded by Python at the start of each daemon under test: holds a process at a function, or changes it.

CLINIMETA_TEST_PAUSE is "MODULE:FUNCTION:MARKER[:SKIP]": when FUNCTION (of MODULE, or CLASS.METHOD) is called,
MARKER is made, with the pid in it, and the call waits until somebody kills the process, or makes MARKER.go.
The first SKIP calls pass.

CLINIMETA_TEST_REPLACE is "MODULE:FUNCTION=MODULE:FUNCTION": the second (of a file in this folder) is called
in the first one's place, with the first as its first argument.
"""

import os
import sys
import time
from importlib import import_module
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
            end = time.monotonic() + 600
            while time.monotonic() < end and not os.path.exists(marker + ".go"):
                time.sleep(0.05)
        return function(*args, **kwargs)

    return held


def _instead(function, other):
    def called(*args, **kwargs):
        module, name = other.split(":")
        return getattr(import_module(module), name)(function, *args, **kwargs)

    return called


class _Finder:
    def __init__(self, module, function, change):
        self.module, self.function, self.change = module, function, change

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
            setattr(place, last, self.change(getattr(place, last)))

        spec.loader.exec_module = exec_module
        return spec


_asked = os.environ.get("CLINIMETA_TEST_PAUSE", "")
if _asked:
    _module, _function, _marker, *_skip = _asked.split(":")
    if not Path(_marker).exists():
        _skip = int(_skip[0]) if _skip else 0
        sys.meta_path.insert(0, _Finder(_module, _function, lambda f: _hold(f, _marker, _skip)))
_replaced = os.environ.get("CLINIMETA_TEST_REPLACE", "")
if _replaced:
    _place, _other = _replaced.split("=")
    sys.meta_path.insert(0, _Finder(*_place.split(":"), lambda f: _instead(f, _other)))
