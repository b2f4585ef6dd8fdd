"""Every byte layout that crosses a boundary: kernel records (``events``), worker messages (``spans``). No I/O."""
