//! Text from outside, made harmless where a terminal or a log shows it.
//!
//! Names, commands and output of servers can carry what a terminal obeys (escape sequences), what forges a
//! line (line breaks), and what makes text read otherwise than it is (marks of direction, characters without
//! width).

use std::borrow::Cow;
use std::fmt::Write as _;

/// A value in a message is shown up to this many characters.
const LONGEST_VALUE: usize = 80;

/// Must this character not reach a terminal or a log as it is?
pub(crate) fn is_harmful(c: char) -> bool {
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

/// A value as part of one line: escaped, whole.
pub(crate) fn whole(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// Lines, each escaped: line breaks and tabs stay.
pub(crate) fn block(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && c != '\t' && is_harmful(c))
}

/// A value in a message: escaped, and cut with a mark where it is long.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => Cow::Owned(format!("{}…", whole(&text[..end]))),
        None => whole(text),
    }
}

fn escaped(text: &str, harmful: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !harmful(c) => out.push(c),
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
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_the_rest_is_left() {
        assert_eq!(whole("m\u{1b}[2J\nx\u{202e}"), "m\\u001b[2J\\nx\\u202e");
        assert_eq!(block("a\n\tb\r\n"), "a\n\tb\\r\n");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), LONGEST_VALUE + 1);
        assert_eq!(whole("電 é 🚀"), "電 é 🚀");
    }

    proptest! {
        #[test]
        fn nothing_harmful_survives(text in any::<String>()) {
            prop_assert!(!whole(&text).contains(is_harmful));
            prop_assert!(!shown(&text).contains(is_harmful));
            prop_assert!(!block(&text).contains(|c| c != '\n' && c != '\t' && is_harmful(c)));
        }
    }
}
