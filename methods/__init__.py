"""What is measured: models, precisions, adapters, optimizers, offload, rollouts, rewards and algorithms.

Written once, run on CUDA, on the CPU and on the meta device. Nothing here knows how, or that, it is measured: a job
only says which phase it is in.
"""
