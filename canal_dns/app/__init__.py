"""The composition root: the only place that knows every room. Rules live elsewhere."""
