"""tasuki-mp: a multi-process runner for CPU-heavy jobs, durable on nothing but Postgres."""
