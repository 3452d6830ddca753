"""Memory that no tracer sees: inside operators, and outside of the allocator."""
