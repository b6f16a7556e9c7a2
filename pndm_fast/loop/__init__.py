"""One call: what is asked, the network, the loop over a plan's rows."""
