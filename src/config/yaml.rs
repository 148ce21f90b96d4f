//! YAML text in and out: the only file that names `serde_yaml`.
//!
//! The text becomes a [`Node`], which keeps what a typed deserialiser would stop at (repeated keys, wrong types, tags):
//! so every problem of a file can be reported in one run.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Most values one file may have: agft knows about a hundred keys, and aliases can multiply a few lines into billions.
pub(super) const MAX_VALUES: usize = 4096;

/// Longest piece of a file that an error message repeats, in characters.
const SHOWN: usize = 60;

/// A YAML value as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    Tagged(String),
}

/// Why a text is not one YAML document of reasonable size.
#[derive(Debug)]
pub(super) enum YamlError {
    /// The parser's message, with line and column where it knows them.
    Syntax {
        line: Option<usize>,
        message: String,
    },
    /// More than [`MAX_VALUES`] values, aliases expanded.
    TooManyValues,
    SecondDocument,
}

/// Reads the one document of `text`.
pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    // Each bracket opens a value. The parser's time grows with the square of their depth: minutes for 1 MiB of them.
    if text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_VALUES {
        return Err(YamlError::TooManyValues);
    }
    let budget = Cell::new(MAX_VALUES);
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else { return Ok(Node::Null) };
    match (Seed { budget: &budget }).deserialize(document) {
        Err(_) if budget.get() == 0 => Err(YamlError::TooManyValues),
        Err(error) => {
            Err(YamlError::Syntax { line: error.location().map(|at| at.line()), message: error.to_string() })
        }
        Ok(_) if documents.next().is_some() => Err(YamlError::SecondDocument),
        Ok(node) => Ok(node),
    }
}

/// Writes the configuration as YAML.
#[expect(
    clippy::expect_used,
    reason = "structs of numbers, words, texts and lists of these have no unwritable value"
)]
pub(super) fn write(config: &super::Config) -> String {
    serde_yaml::to_string(config).expect("every value of a Config has a YAML form")
}

/// Escapes what a terminal would obey and cuts what is long.
pub(super) fn shown(text: &str) -> String {
    crate::text::cut(text, SHOWN).into_owned()
}

/// For error messages: what the value is, with its type where that is not plain to see.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("empty (null)"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            // What stands before an @ may be a user name and a password: an error message must not spread them.
            Self::Text(text) => match text.rsplit_once('@') {
                Some((_, host)) => write!(f, "the text \"***@{}\"", shown(host)),
                None => write!(f, "the text \"{}\"", shown(text)),
            },
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Map(entries) => write!(f, "a mapping of {}", entries.len()),
            Self::Tagged(tag) => write!(f, "a value with the tag {}", shown(tag)),
        }
    }
}

/// Builds one [`Node`] and takes it off the budget.
#[derive(Clone, Copy)]
struct Seed<'b> {
    budget: &'b Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let left = self.budget.get().saturating_sub(1);
        self.budget.set(left);
        if left == 0 {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        #[expect(clippy::cast_precision_loss, reason = "only shown: no key accepts a number of this size")]
        Ok(i128::try_from(value).map_or(Node::Float(value as f64), Node::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry_seed(self, self)? {
            let key = match key {
                Node::Text(text) => text,
                other => other.to_string(),
            };
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (tag, content) = tagged.variant_seed(self)?;
        content.newtype_variant_seed(self)?;
        Ok(Node::Tagged(match tag {
            Node::Text(text) => text,
            other => other.to_string(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Node {
        parse(text).unwrap()
    }

    #[test]
    fn scalars_get_the_types_of_yaml_1_2() {
        assert_eq!(scalar("0x1F"), Node::Int(31));
        assert_eq!(scalar("18446744073709551615"), Node::Int(u64::MAX.into()));
        assert_eq!(scalar("-3"), Node::Int(-3));
        assert_eq!(scalar("1e3"), Node::Float(1000.0));
        assert_eq!(scalar("-.inf"), Node::Float(f64::NEG_INFINITY));
        assert!(matches!(scalar(".nan"), Node::Float(value) if value.is_nan()));
        for text in ["yes", "off", "010", "1_000", "\"8\"", "'true'"] {
            assert!(matches!(scalar(text), Node::Text(_)), "{text}");
        }
        for text in ["", "~", "null", "# only a comment\n", "---\n"] {
            assert_eq!(scalar(text), Node::Null, "{text:?}");
        }
    }

    #[test]
    fn repeated_keys_are_kept_for_the_reader_to_refuse() {
        let entries = vec![("a".to_owned(), Node::Int(1)), ("a".to_owned(), Node::Int(2))];
        assert_eq!(scalar("a: 1\na: 2\n"), Node::Map(entries));
    }

    #[test]
    fn tags_are_kept_by_name_and_core_tags_only_choose_the_type() {
        assert_eq!(scalar("!python/object:os.system [x]"), Node::Tagged("python/object:os.system".into()));
        assert_eq!(scalar("!!str 8"), Node::Text("8".into()));
    }

    #[test]
    fn alias_bomb_stops_at_the_value_budget() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let item = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [item.as_str(); 9].join(", "));
        }
        assert!(matches!(parse(&bomb), Err(YamlError::TooManyValues)));
    }

    #[test]
    fn deep_nesting_is_refused_without_stack_overflow_or_minutes_of_parsing() {
        for opener in ["[", "{a: ", "? ", "- "] {
            assert!(matches!(parse(&opener.repeat(1000)), Err(YamlError::Syntax { .. })), "{opener}");
        }
        assert!(matches!(parse(&"{a: ".repeat(1 << 18)), Err(YamlError::TooManyValues)));
        assert!(matches!(parse(&"? ".repeat(1 << 19)), Err(YamlError::Syntax { .. })));
    }

    #[test]
    fn second_document_is_refused_even_if_it_is_broken() {
        for text in ["a: 1\n---\nb: 2\n", "a: 1\n---\n", "a: 1\n---\n\t]"] {
            assert!(matches!(parse(text), Err(YamlError::SecondDocument)), "{text:?}");
        }
        assert!(parse("---\na: 1\n...\n").is_ok());
    }

    #[test]
    fn values_in_messages_are_escaped_cut_and_free_of_passwords() {
        assert_eq!(Node::Text("\u{1b}[31m".into()).to_string(), "the text \"\\u001b[31m\"");
        assert_eq!(Node::Text("http://me:secret@host/x".into()).to_string(), "the text \"***@host/x\"");
        assert!(Node::Text("x".repeat(1000)).to_string().len() < 100);
    }
}
