"""What outlives a call: the sampler, caches, captured graphs."""
