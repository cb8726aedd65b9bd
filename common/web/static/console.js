// Live parts of a page: told of news by server-sent events, or else asked for every few seconds.
"use strict";
for (const part of document.querySelectorAll("[data-live]")) {
  const again = () => htmx.trigger(part, "news");
  let polling = null;
  const poll = () => { polling = polling || setInterval(again, 5000); };
  if (!window.EventSource) { poll(); continue; }
  const source = new EventSource(part.dataset.live);
  source.addEventListener("news", again);
  source.addEventListener("open", () => { clearInterval(polling); polling = null; });
  source.addEventListener("error", poll);
}
