"""A page and an HTTP API on one queue of clips.

::

    page, API clients -> server -> store (SQLite) <- worker: keeps the model, makes one clip at a time
                           ^------- events of steps --------'
"""
