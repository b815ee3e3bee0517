"""What the tests share: a real server as a subprocess, and builders of values."""
