"""Who decides whether code is secure and works."""
