"""The binding rule: which Services the internal gateway really serves, and why not. Pure."""
