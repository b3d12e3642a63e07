"""What a component is, and how a spec makes one."""
