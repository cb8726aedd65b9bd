"""How a path could be written so that somebody takes it for another."""


def odd_spellings(path: str) -> list[str]:
    """Paths that a proxy or router somewhere might take for `path`."""
    first, _, rest = path[1:].partition("/")
    return [
        path + "/",
        "/" + path,
        path.replace("/", "//"),
        path.upper(),
        path.title(),
        f"/{first}/./{rest}",
        f"/{first}/x/../{rest}",
        f"/v1/fleet/..{path}",
        f"/v1/fleet/pull-messages/../..{path}",
        f"/health/..{path}",
        f"/v1/fleet/pull-messages;{path}",
        path.replace("/", "\\"),
        path.replace("/", "%2f"),
        path.replace("-", "%2d").replace("e", "%65"),
        path.replace("/", "/%2e/"),
        path + "\0",
        path + "%00",
        " " + path,
        path + "?",
        path + "#",
        path[1:],
        f"https://127.0.0.1{path}",
        "*",
        "",
    ]
