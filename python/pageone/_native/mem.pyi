"""Stubs of `pageone._native.mem`."""
