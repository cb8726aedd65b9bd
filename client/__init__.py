"""The hospital's side: what a site answers to an order, and what it does with the trained model.

`site` answers orders on plain values, `app` puts it behind Flower, `local` adapts a trained model to
the hospital's own patients offline, `cli` is `clinimeta adapt`.
"""
