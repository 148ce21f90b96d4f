//! The YAML file and what becomes of it.
