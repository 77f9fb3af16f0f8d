"""`python -m canal_dns` is `canal-dns`."""

import sys

from canal_dns.cli import main

if __name__ == "__main__":
    sys.exit(main())
