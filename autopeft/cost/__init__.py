"""What a configuration costs: memory, time, latency and size, predicted first and corrected by measurement."""
