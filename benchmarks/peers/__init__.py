"""What a user would pick instead of Safelight, each served as its own documentation recommends."""
