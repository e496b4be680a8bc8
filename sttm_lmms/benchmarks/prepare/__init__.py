"""Converters from the official releases to the STTM annotation format."""
