"""Kubernetes objects in: from a watched folder of manifests. Decides nothing."""
