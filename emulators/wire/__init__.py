"""The parts that all emulated services share: proxy, certificates, requests and responses, sign-in, planted faults."""
