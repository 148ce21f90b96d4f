//! Text from outside, made harmless where it is shown ([`agft_common::text`] decides which characters are).
//!
//! Labels of metrics pages, names of files, processes and GPUs, words of drivers and servers, and what files hold can carry
//! what a terminal obeys (escape sequences), what forges a line (line breaks), and what makes text read otherwise than it is
//! (marks of direction, characters without width). [`line()`] is for one value, which stays on one line and is cut where it
//! is long. [`block`] is the net under everything that is written: it leaves line breaks, and nothing else.
//!
//! Escapes have the form of JSON (`\u001b`), so that [`block`] may also be laid over JSON without changing what it says.

use std::borrow::Cow;
use std::io;

pub use agft_common::text::{cut, is_harmful, whole};

use agft_common::text::escaped;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A value from outside is shown up to this many characters.
pub const LONGEST_VALUE: usize = 200;
/// A line of a log or a terminal is at most this long, in characters.
pub const LONGEST_LINE: usize = 8192;

/// A value as part of one line: escaped, and cut where it is very long.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    cut(text, LONGEST_VALUE)
}

/// Lines that agft made, with what they were given inside: line breaks stay.
#[must_use]
pub fn block(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_harmful(c))
}

/// Any value as JSON that no terminal obeys; it says the same as without.
///
/// # Errors
/// [`serde_json::Error`] if it has no JSON form.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let plain = serde_json::to_string(value)?;
    Ok(match block(&plain) {
        Cow::Borrowed(_) => plain,
        Cow::Owned(safe) => safe,
    })
}

/// Reads JSON from outside: every text in it comes out as [`line()`] has it.
///
/// # Errors
/// [`serde_json::Error`] if it is not what it should be.
pub fn from_json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let mut value = serde_json::from_str(text)?;
    tame(&mut value);
    serde_json::from_value(value)
}

fn tame(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(safe) = line(text) {
                *text = safe;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tame),
        Value::Object(entries) => {
            entries.values_mut().for_each(tame);
            let wild: Vec<String> =
                entries.keys().filter(|key| matches!(line(key), Cow::Owned(_))).cloned().collect();
            for key in wild {
                if let Some(value) = entries.remove(&key) {
                    entries.insert(line(&key).into_owned(), value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A log's way out. One write is one event, as `tracing_subscriber::fmt` does it: whatever is in it, it stays one line.
#[derive(Debug)]
pub struct LogLines<W> {
    to: W,
    /// Colours are left: what agft itself adds on a terminal.
    colours: bool,
}

impl<W: io::Write> LogLines<W> {
    /// Lines for `to`.
    pub const fn new(to: W, colours: bool) -> Self {
        Self { to, colours }
    }
}

impl<W: io::Write> io::Write for LogLines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut safe = String::with_capacity(text.len() + 1);
        let mut rest = text;
        while self.colours
            && let Some((before, style, after)) = next_style(rest)
        {
            safe.push_str(&whole(before));
            safe.push_str(style);
            rest = after;
        }
        safe.push_str(&whole(rest));
        if let Some((end, _)) = safe.char_indices().nth(LONGEST_LINE) {
            safe.truncate(end);
            safe.push('…');
        }
        safe.push('\n');
        self.to.write_all(safe.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The next sequence that only sets a colour or a weight, with what is before and after it.
fn next_style(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices("\u{1b}[").find_map(|(at, opening)| {
        let inside = &text[at + opening.len()..];
        let length = inside.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
        let end = at + opening.len() + length + 1;
        (inside.as_bytes().get(length) == Some(&b'm')).then(|| (&text[..at], &text[at..end], &text[end..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::Write as _;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_what_it_prints_is_left() {
        assert_eq!(line("m\u{1b}[2J\u{1b}]0;x\u{7}\nERROR"), "m\\u001b[2J\\u001b]0;x\\u0007\\nERROR");
        assert_eq!(
            line("a\u{202e}b\u{2066}c\u{200f}d\u{feff}\u{2028}\u{9b}\u{7f}"),
            "a\\u202eb\\u2066c\\u200fd\\ufeff\\u2028\\u009b\\u007f"
        );
        assert_eq!(line("電 é — \"x\\y\" 🚀"), "電 é — \"x\\y\" 🚀");
        assert_eq!(block("a\n\tb\r\n"), "a\n\\tb\\r\n");
        assert_eq!(line(&"x".repeat(100_000)).chars().count(), LONGEST_VALUE + 1);
    }

    fn logged(event: &str, colours: bool) -> String {
        let mut out = Vec::new();
        LogLines::new(&mut out, colours).write_all(event.as_bytes()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn colours_of_the_console_are_all_that_gets_through() {
        let event = "\u{1b}[31mERROR\u{1b}[0m \u{1b}[2Jx\ny\u{1b}[1;2m\u{1b}[3\n";
        assert_eq!(logged(event, true), "\u{1b}[31mERROR\u{1b}[0m \\u001b[2Jx\\ny\u{1b}[1;2m\\u001b[3\n");
        assert!(!logged(event, false).contains('\u{1b}'));
        assert!(logged(&"x".repeat(1 << 20), false).chars().count() <= LONGEST_LINE + 2);
    }

    proptest! {
        #[test]
        fn nothing_harmful_survives(text in any::<String>(), hostile in "[\\x00-\\xa0\u{2000}-\u{206f}\u{feff}a]{0,40}") {
            for text in [&text, &hostile] {
                prop_assert!(!line(text).contains(is_harmful));
                prop_assert!(!block(text).contains(|c| c != '\n' && is_harmful(c)));
                let event = logged(&format!("{text}\n"), false);
                prop_assert!(!event.strip_suffix('\n').unwrap().contains(is_harmful));
                let json = json(text).unwrap();
                prop_assert!(!json.contains(is_harmful));
                prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), text);
                // What is harmless is not touched, and nothing is escaped twice.
                let once = whole(text);
                prop_assert_eq!(whole(&once), once.as_ref());
            }
        }
    }
}
