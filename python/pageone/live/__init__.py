"""Live processes: attach, merge, detach; the only package that touches targets."""
