"""The site behind Flower: a ClientApp that decodes an order, lets the site answer, and sends the answer.

An exception never leaves the hospital: what goes wrong becomes a `Refusal` with a fixed sentence, and
the details stay in the site's own log.
"""

from collections.abc import Callable

import structlog
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clinimeta.client.site import Site, answer
from clinimeta.common.errors import RecordError
from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.records import (
    REFUSALS,
    Order,
    Refusal,
    Reply,
)
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Table

log = structlog.get_logger()

OpenSite = Callable[[Context], Site]
"""How a ClientApp finds the hospital that it speaks for, from Flower's node configuration."""

Release = Callable[[Reply, Order | None, Message], Message]
"""The only way out: an answer to an order (None: unreadable) becomes the message that replies to one."""


def unsigned(reply: Reply, _order: Order | None, message: Message) -> Message:
    """As simulated hospitals answer: nothing is signed or written down."""
    return Message(to_flower(reply), reply_to=message)


def client_app(open_site: OpenSite, release: Release = unsigned) -> ClientApp:
    """A ClientApp for the site that `open_site` finds; all that leaves goes through `release`."""
    app = ClientApp()
    sites: dict[int, Site] = {}
    tables: dict[int, dict[Schema, Table]] = {}

    def handle(message: Message, context: Context) -> Message:
        node = context.node_id
        if node not in sites:
            try:
                sites[node] = open_site(context)
            except Exception as error:
                log.error("the site's data cannot be opened", error=type(error).__name__)
                order = _order_of(message)
                nonce = order.nonce if order else ""
                return release(Refusal(nonce, "", "internal", REFUSALS["internal"]), order, message)
        order = _order_of(message)
        return release(_answer(sites[node], order, tables.setdefault(node, {})), order, message)

    app.query("introduction")(handle)
    app.train("meta_gradient")(handle)
    app.train("quantised")(handle)
    app.train("masking")(handle)
    app.evaluate("calibration")(handle)
    return app


def _order_of(message: Message) -> Order | None:
    try:
        order = from_flower(message.content)
    except RecordError as error:
        log.warning("order refused", reason=str(error))
        return None
    return order if isinstance(order, Order) else None


def _answer(site: Site, order: Order | None, tables: dict[Schema, Table]) -> Reply:
    if order is None:
        return Refusal("", site.name, "bad_order", REFUSALS["bad_order"])
    try:
        return answer(site, order, tables)
    except RecordError as error:
        log.warning("order refused", site=site.name, reason=str(error))
        return Refusal(order.nonce, site.name, "bad_order", REFUSALS["bad_order"])
    except Exception as error:
        # The text of a foreign exception may hold values, so only its type is logged.
        log.error("answer failed", site=site.name, error=type(error).__name__)
        return Refusal(order.nonce, site.name, "internal", REFUSALS["internal"])
