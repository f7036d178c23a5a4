"""Put one environment back into a state that it has been in, prove that it works, and measure what it costs."""
