//! Lines to standard output and standard error that never end the program: a reader that has gone (`| head`) is no reason
//! to panic, least of all while clocks are being given back. Nothing in them steers a terminal or forges a line, whatever
//! they were given to say.

use std::fmt::Arguments;
use std::io::Write;

use crate::text;

/// A line to standard output.
#[macro_export]
macro_rules! say {
    () => { $crate::cli::say::out("") };
    ($($text:tt)*) => { $crate::cli::say::out(&format!($($text)*)) };
}

/// A line to standard error.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::cli::say::err(format_args!($($text)*)) };
}

/// What [`say!`] does.
pub fn out(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text::whole(line));
}

/// What [`complain!`] does.
pub fn err(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{}", text::whole(&line.to_string()));
}

/// Whole lines to standard output, as they are: values in them are to be escaped where they are put in, this is the net
/// under that. False where nobody reads.
pub fn print(lines: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text::block(lines).as_bytes()).and_then(|()| out.flush()).is_ok()
}
