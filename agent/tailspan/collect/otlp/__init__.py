"""OTLP in: what workers export anyway is forwarded unchanged, and its spans are joined to what the kernel saw.

``server.py`` is what the daemon holds. Below it ``grpc_server.py`` and ``http_server.py`` take messages on threads
of their own. ``intake.py`` asks who sent each (``senders.py``), decodes it (``decode.py``), keeps what is of
interest of its spans (``spans.py``), and forwards it. ``assemble.py`` makes requests of them: that is done on the
daemon's thread.
"""
