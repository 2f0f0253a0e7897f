"""How fast pushes into an endpoint go: a sweep over layers, sizes and limits, measured, told and drawn."""
