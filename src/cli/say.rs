//! Lines to standard output and standard error that never end the program: a reader that has gone (`| head`) is no reason
//! to panic, least of all while clocks are being given back.

/// A line to standard output.
macro_rules! say {
    ($($text:tt)*) => {{
        use ::std::io::Write as _;
        let _ = writeln!(::std::io::stdout(), $($text)*);
    }};
}

/// A line to standard error.
macro_rules! complain {
    ($($text:tt)*) => {{
        use ::std::io::Write as _;
        let _ = writeln!(::std::io::stderr(), $($text)*);
    }};
}
