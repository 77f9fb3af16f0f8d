"""DNS: names, wire format, the answer table and the decision for one packet. No sockets, no clocks, no logs."""
