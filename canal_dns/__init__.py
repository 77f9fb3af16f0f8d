"""canal-dns: bound Services answer with the internal gateway's address, every other query reaches CoreDNS."""

__version__ = "0.1.0"
