//! The agft binary.
fn main() {}
