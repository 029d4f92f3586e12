"""Crashes made on purpose: processes killed at any moment, disks that fail at any write, power lost in between."""
