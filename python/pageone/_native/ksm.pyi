"""Stubs of `pageone._native.ksm`."""
