"""Models: configurations, weights, heads, attention."""
