"""AMD and Intel GPUs, straight from sysfs."""
