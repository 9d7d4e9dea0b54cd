"""STAC Items, Collections and Catalogs to sources."""
