"""What every emulated service shares: the proxy, its certificates, the words for requests, sign-in, planted faults."""
