"""Where the queries come from: `flood` (C, built on first use) and dnsperf behind one small interface."""
