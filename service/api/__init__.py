"""HTTP and WebSocket routes, and the shapes of what they take and give."""
