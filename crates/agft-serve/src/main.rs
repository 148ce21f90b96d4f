//! The agft-serve program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    agft_serve::run::main()
}
