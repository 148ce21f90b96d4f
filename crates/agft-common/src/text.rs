//! Text from outside, made harmless where it is shown: the only place that decides which characters are.
//!
//! Names, commands, words of drivers and servers, and what files hold can carry what a terminal obeys (escape
//! sequences), what forges a line (line breaks), and what makes text read otherwise than it is (marks of
//! direction, characters without width). Escapes have the form of JSON (`\u001b`).

use std::borrow::Cow;
use std::fmt::Write as _;

/// Must this character not reach a terminal, a log or a page as it is?
#[must_use]
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

fn push(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

/// The text with every character escaped that is `harmful`.
pub fn escaped(text: &str, harmful: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) { push(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// A value as part of one line: escaped, whole.
#[must_use]
pub fn whole(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// A value as part of one line: escaped, and cut with a mark after `longest` characters.
#[must_use]
pub fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        Some((end, _)) => Cow::Owned(format!("{}…", whole(&text[..end]))),
        None => whole(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_the_rest_is_left() {
        assert_eq!(whole("m\u{1b}[2J\nx\u{202e}"), "m\\u001b[2J\\nx\\u202e");
        assert_eq!(whole("電 é 🚀"), "電 é 🚀");
        assert_eq!(cut(&"x".repeat(1000), 80).chars().count(), 80 + 1);
    }

    proptest! {
        #[test]
        fn nothing_harmful_survives(text in any::<String>()) {
            prop_assert!(!whole(&text).contains(is_harmful));
            prop_assert!(!cut(&text, 80).contains(is_harmful));
        }
    }
}
