"""Environments: from an id to open ones that keep one contract.

A library is one adaptor module and one line of `env_id.ADAPTORS`. Every process that steps
environments imports `worker` and `gymnasium`, so these and what they import stay free of JAX.
"""
