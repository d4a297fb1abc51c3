"""Build Linux sandboxes and minimal containers in process."""
