"""What runs around the library: a queue of jobs with its worker, live video, and the studio that shows both."""
