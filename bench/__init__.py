"""``make bench``: how much a proxy costs, measured side by side with the upstream asked directly and with other proxies.

Read :mod:`bench.__main__` first. It leaves the plan to :mod:`bench.measure`, the meaning of the numbers to
:mod:`bench.figures`, and showing them to :mod:`bench.report` and :mod:`bench.picture`.
"""
