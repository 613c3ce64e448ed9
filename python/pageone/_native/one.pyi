"""Stubs of `pageone._native.one`."""
