//! The `warren` command.
fn main() {}
