//! Text from outside as the commands and messages of the supervisor show it, harmless to terminals and logs.

use std::borrow::Cow;

use agft_common::text::{cut, escaped};
pub(crate) use agft_common::text::{is_harmful, whole};

/// A value in a message is shown up to this many characters.
const LONGEST_VALUE: usize = 80;

/// Lines, each escaped: line breaks and tabs stay.
pub(crate) fn block(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && c != '\t' && is_harmful(c))
}

/// A value in a message: escaped, and cut with a mark where it is long.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    cut(text, LONGEST_VALUE)
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
