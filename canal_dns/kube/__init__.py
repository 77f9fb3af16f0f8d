"""Kubernetes objects in: from an API server that is watched, or from a watched folder of manifests. Decides nothing."""
