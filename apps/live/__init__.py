"""Live video in a browser: a stream in a thread for each session, who shares it, and the page that steers it."""
