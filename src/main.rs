//! The agft program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    agft::cli::main()
}
