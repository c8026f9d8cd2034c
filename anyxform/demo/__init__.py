"""The page that `anyxform demo` writes: what a small model, trained from scratch, can do on samples it never saw."""
