"""The site behind Flower: a ClientApp that decodes an order, lets the site answer, and sends the answer.

An exception never leaves the hospital: what goes wrong becomes a `Refusal` with a fixed sentence, and
the details stay in the site's own log.
"""

from collections.abc import Callable

import structlog
from flwr.app import Context, Message, RecordDict
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

Release = Callable[[Reply], RecordDict]
"""The only way out: an answer becomes the content of a message."""


def client_app(open_site: OpenSite, release: Release = lambda reply: to_flower(reply)) -> ClientApp:
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
                refusal = Refusal(_nonce_of(message), "", "internal", REFUSALS["internal"])
                return Message(release(refusal), reply_to=message)
        reply = _answer(sites[node], message, tables.setdefault(node, {}))
        return Message(release(reply), reply_to=message)

    app.query("introduction")(handle)
    app.train("meta_gradient")(handle)
    app.train("quantised")(handle)
    app.train("masking")(handle)
    app.evaluate("calibration")(handle)
    return app


def _nonce_of(message: Message) -> str:
    try:
        return from_flower(message.content).nonce
    except RecordError:
        return ""


def _answer(site: Site, message: Message, tables: dict[Schema, Table]) -> Reply:
    nonce = ""
    try:
        order = from_flower(message.content)
        if not isinstance(order, Order):
            return Refusal(nonce, site.name, "bad_order", REFUSALS["bad_order"])
        nonce = order.nonce
        return answer(site, order, tables)
    except RecordError as error:
        log.warning("order refused", site=site.name, reason=str(error))
        return Refusal(nonce, site.name, "bad_order", REFUSALS["bad_order"])
    except Exception as error:
        # The text of a foreign exception may hold values, so only its type is logged.
        log.error("answer failed", site=site.name, error=type(error).__name__)
        return Refusal(nonce, site.name, "internal", REFUSALS["internal"])
