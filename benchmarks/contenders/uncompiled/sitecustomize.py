"""For `canal-dns mmsg`: with this folder in PYTHONPATH no compiled module of canal-dns is found, as where none was built."""

import sys

for name in ("canal_dns.server._batch_c", "canal_dns.server._forward_c"):
    sys.modules[name] = None  # type: ignore[assignment]
