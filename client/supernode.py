"""Flower's SuperNode as the daemon's child: it carries messages and runs nothing itself.

Run as `python -m clinimeta.client.supernode ARGUMENTS-OF-FLOWER-SUPERNODE`.
"""

from clinimeta.common.logs import quiet_flower
from clinimeta.common.supervision import die_with_parent


def main() -> None:
    """Run it for as long as the daemon lives."""
    die_with_parent()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    quiet_flower()
    flower_supernode()


if __name__ == "__main__":
    main()
