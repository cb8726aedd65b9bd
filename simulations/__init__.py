"""Many hospitals in one process: the very same server and client apps, over a loopback Grid or Ray.

`cli` is the `clinimeta` command. `run` does a study: trainings (`loopback`, `ray_engine`, with
`failures` injected), then `evaluation` at hospitals, `statistics` over them, and the `report`.
`hospitals` makes the synthetic federation; `datasets` finds real ones; `studies` holds study files.
"""
