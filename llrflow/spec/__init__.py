"""The spec: YAML to a frozen, checked, resolved `Spec`."""
