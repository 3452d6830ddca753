"""People's own training code: its memory, measured on CUDA and predicted elsewhere; `watch`, and the pytest plugin."""
